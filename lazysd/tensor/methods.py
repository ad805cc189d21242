"""LazyTensor's structural methods, in torch's signatures: one function a method, none of which reads data.

`METHODS` is the one table; torch's free functions of the same names use it too.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeVar

from .. import dtypes
from ..graph.boxes import full_box
from ..graph.ops import Permute
from ..graph.rewrite import build, cast, reshape, slice_
from .indexing import index
from .lazy import LazyTensor

METHODS: dict[str, Callable[..., Any]] = {}


F = TypeVar("F", bound=Callable[..., Any])


def _method(function: F) -> F:
    METHODS[function.__name__.rstrip("_")] = function
    return function


def axis_of(node: LazyTensor, dim: int, extra: int = 0) -> int:
    """A non-negative axis number; IndexError out of range, as torch."""
    ndim = node.ndim + extra
    if not -ndim <= dim < ndim:
        raise IndexError(f"axis {dim} is out of range for {ndim} axes")
    return dim % ndim


def _sizes(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """permute(0, 1), permute((0, 1)) and permute([0, 1]) are the same."""
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else tuple(sizes)


@_method
def permute(node: LazyTensor, *dims: Any) -> LazyTensor:
    return build(Permute(tuple(axis_of(node, dim) for dim in _sizes(dims))), (node,))


@_method
def transpose(node: LazyTensor, dim0: int, dim1: int) -> LazyTensor:
    order = list(range(node.ndim))
    a, b = axis_of(node, dim0), axis_of(node, dim1)
    order[a], order[b] = order[b], order[a]
    return permute(node, *order)


@_method
def t(node: LazyTensor) -> LazyTensor:
    if node.ndim > 2:
        raise RuntimeError(f"t() expects at most 2 axes, got {node.ndim}; use transpose or mT")
    return node if node.ndim < 2 else transpose(node, 0, 1)


@_method
def reshape_(node: LazyTensor, *shape: Any) -> LazyTensor:
    return reshape(node, _sizes(shape))


@_method
def flatten(node: LazyTensor, start_dim: int = 0, end_dim: int = -1) -> LazyTensor:
    if not node.ndim:
        return reshape(node, (1,))
    first, last = axis_of(node, start_dim), axis_of(node, end_dim)
    return reshape(node, (*node.dims[:first], prod(node.dims[first : last + 1]), *node.dims[last + 1 :]))


@_method
def unflatten(node: LazyTensor, dim: int, sizes: Any) -> LazyTensor:
    axis, sizes = axis_of(node, dim), list(sizes)
    if -1 in sizes:
        sizes[sizes.index(-1)] = node.dims[axis] // max(1, -prod(sizes))
    if prod(sizes) != node.dims[axis]:
        raise ValueError(f"cannot unflatten axis {axis} of size {node.dims[axis]} into {sizes}")
    return reshape(node, (*node.dims[:axis], *sizes, *node.dims[axis + 1 :]))


@_method
def unsqueeze(node: LazyTensor, dim: int) -> LazyTensor:
    axis = axis_of(node, dim, extra=1)
    return reshape(node, (*node.dims[:axis], 1, *node.dims[axis:]))


@_method
def squeeze(node: LazyTensor, dim: Any = None) -> LazyTensor:
    wanted = range(node.ndim) if dim is None else dim if isinstance(dim, tuple) else (dim,)
    axes = {axis_of(node, k) for k in wanted}
    return reshape(node, [size for k, size in enumerate(node.dims) if size != 1 or k not in axes])


@_method
def select(node: LazyTensor, dim: int, index_: int) -> LazyTensor:
    axis = axis_of(node, dim)
    return index(node, (*(slice(None),) * axis, index_))


@_method
def narrow(node: LazyTensor, dim: int, start: int, length: int) -> LazyTensor:
    axis = axis_of(node, dim)
    size = node.dims[axis]
    start = start + size if start < 0 else start
    if start < 0 or length < 0 or start + length > size:
        raise IndexError(f"narrow({start}, {length}) leaves axis {axis} of size {size}")
    box = full_box(node.dims)
    return slice_(node, (*box[:axis], range(start, start + length), *box[axis + 1 :]))


@_method
def split(node: LazyTensor, split_size_or_sections: Any, dim: int = 0) -> tuple[LazyTensor, ...]:
    axis = axis_of(node, dim)
    size, sections = node.dims[axis], split_size_or_sections
    if isinstance(sections, int):
        if sections < 1:
            raise ValueError(f"split needs a positive size, got {sections}")
        sections = [min(sections, size - at) for at in range(0, size, sections)] or [0]
    if sum(sections) != size:
        raise ValueError(f"split sizes {list(sections)} add up to {sum(sections)}, axis {axis} has {size}")
    parts, at = [], 0
    for length in sections:
        parts.append(narrow(node, axis, at, length))
        at += length
    return tuple(parts)


@_method
def chunk(node: LazyTensor, chunks: int, dim: int = 0) -> tuple[LazyTensor, ...]:
    if chunks < 1:
        raise ValueError(f"chunk needs a positive number of chunks, got {chunks}")
    return split(node, max(1, -(-node.dims[axis_of(node, dim)] // chunks)), dim)


@_method
def unbind(node: LazyTensor, dim: int = 0) -> tuple[LazyTensor, ...]:
    return tuple(select(node, dim, k) for k in range(node.dims[axis_of(node, dim)]))


@_method
def to(node: LazyTensor, *args: Any, **kwargs: Any) -> Any:
    """to(dtype) stays lazy; to(device) and to(device, dtype) materialise there."""
    import torch

    dtype, device = kwargs.get("dtype"), kwargs.get("device")
    for value in args:
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, (str, int, torch.device)) and not isinstance(value, bool):
            device = value
        elif isinstance(value, (torch.Tensor, LazyTensor)):
            dtype, device = value.dtype, getattr(value, "device", None)
    lazy = node if dtype is None else cast(node, dtypes.from_torch(dtype))
    if device is None or torch.device(device).type == "cpu":
        return lazy
    return lazy.materialize(device=device)


for _name, _code in {"float": "F32", "double": "F64", "half": "F16", "bfloat16": "BF16"}.items():
    METHODS[_name] = lambda node, _code=_code: cast(node, _code)
for _name in ("contiguous", "detach", "cpu", "clone", "requires_grad_"):
    METHODS[_name] = lambda node, *args, **kwargs: node  # nodes are immutable, so the same node serves
METHODS["view"] = METHODS["reshape"]
METHODS["dim"] = lambda node: node.ndim
METHODS["size"] = lambda node, dim=None: node.shape if dim is None else node.dims[axis_of(node, dim)]
METHODS["element_size"] = lambda node: node.itemsize

"""torch's own functions and methods on lazy tensors.

Three tables decide. Structural functions stay lazy; functions of shape and dtype alone are answered by a meta tensor;
whatever writes is refused. Everything else reads its lazy arguments and runs on torch tensors.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import torch

from .. import dtypes
from ..errors import ReadOnlyError
from ..graph.leaves import InMemory
from ..graph.rewrite import cast, concat, stack
from ..move.target import is_dtensor, is_fillable, overlaps_itself
from .lazy import LazyTensor
from .methods import METHODS, axis_of
from .operators import WRITE_HINT

ATTRIBUTES: dict[str, Any] = {
    "device": torch.device("cpu"),  # where operations put results; materialize(device=) decides for data
    "layout": torch.strided,
    "requires_grad": False,
    "grad": None,
    "grad_fn": None,
    "is_leaf": True,
    **dict.fromkeys(("is_cpu",), True),
    **dict.fromkeys(("is_cuda", "is_meta", "is_sparse", "is_quantized", "is_nested", "is_mps", "is_xpu"), False),
}
# Functions and methods of shape and dtype alone.
METADATA = {
    *("is_floating_point", "is_complex", "is_signed", "is_conj", "is_neg", "is_inference", "is_contiguous"),
    *(
        "stride",
        "storage_offset",
        "numel",
        "nelement",
        "dim",
        "ndimension",
        "get_device",
        "result_type",
        "is_same_size",
    ),
}
LIKE = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"}
LIKE |= {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}
NO_MEMORY = {"data_ptr", "storage", "untyped_storage", "register_hook", "backward", "retain_grad", "requires_grad_"}
_ALIASES = {"concatenate": "cat", "concat": "cat", "swapaxes": "transpose", "swapdims": "transpose"}
_KEYWORDS = {"axis": "dim", "axis0": "dim0", "axis1": "dim1", "index": "index_", "split_size": "split_size_or_sections"}


def method(node: LazyTensor, name: str) -> Any:
    """Attribute `name` of a lazy tensor beyond the ones it defines itself. Looking an attribute up never reads."""
    if name in ATTRIBUTES:
        return ATTRIBUTES[name]
    if name in ("H", "mH") and node.dtype.is_complex:
        raise AttributeError(f"{name} of a complex tensor is conjugated, so it has to be read: materialize().{name}")
    if name == "T" or name == "H":
        return METHODS["permute"](node, *reversed(range(node.ndim)))
    if name in ("mT", "mH"):
        return METHODS["transpose"](node, -2, -1)
    if name in ("itemsize", "nbytes"):  # the properties of these names refused; repeat the reason
        return dtypes.itemsize(node.code)
    if name == "data":
        return node
    known = name in METHODS or callable(getattr(torch.Tensor, name, None))
    if name.startswith("_") or not known:
        raise AttributeError(f"LazyTensor has no attribute {name!r}; materialize() gives a torch.Tensor")
    return partial(_call, name, node)


def _call(name: str, node: LazyTensor, *args: Any, **kwargs: Any) -> Any:
    """node.<name>(…)"""
    if name in ("numpy", "cuda"):
        return node.__array__() if name == "numpy" else node.materialize(device=_cuda_device(*args, **kwargs))
    if name in NO_MEMORY or _writes(name):
        raise _refusal(name)
    return _dispatch(getattr(torch.Tensor, name, None), name, (node, *args), kwargs)


def torch_function(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """torch.<func>(…) with a lazy tensor somewhere in its arguments."""
    name = getattr(func, "__name__", str(func))
    written = args[0] if args else next(iter(kwargs.values()), None)
    inplace = kwargs.get("inplace") is True
    if _has_lazy(kwargs.get("out")) or ((inplace or _writes(name)) and _has_lazy(written)):
        raise _refusal(name)
    if name == "__setitem__" and _is_basic(args[1]):  # target[3:5] = lazy goes straight into the slice
        target = args[0][args[1]]
        if isinstance(args[2], LazyTensor) and tuple(target.shape) == args[2].dims:
            return target.copy_(args[2])
        return func(*_read(args))
    if name == "copy_" and isinstance(args[1], LazyTensor) and _can_fill(args[0], args[1]):
        return args[1].materialize(out=args[0])
    if func is torch.equal and len(args) == 2 and args[0].shape != args[1].shape:
        return False
    return _dispatch(func, name, args, kwargs)


def operate(node: LazyTensor, name: str, others: Any) -> Any:
    """An operator: read both sides and let torch decide."""
    comparable = (LazyTensor, torch.Tensor, int, float, complex)
    if name in ("__eq__", "__ne__") and not (isinstance(others[0], comparable) or hasattr(others[0], "__array__")):
        return NotImplemented  # lazy == None is False, and reads nothing
    left, *values = _read((node, *others))
    if values and hasattr(values[0], "__array__") and not isinstance(values[0], torch.Tensor):
        values[0] = torch.as_tensor(values[0])
    return getattr(left, name)(*values)


def _can_fill(target: Any, node: LazyTensor) -> bool:
    """Whether filling `target` in place does what `target.copy_(tensor)` would do."""
    if is_dtensor(target):
        return tuple(target.shape) == node.dims and not torch.is_grad_enabled()
    if type(target) not in (torch.Tensor, torch.nn.Parameter) or tuple(target.shape) != node.dims:
        return False
    if target.requires_grad and torch.is_grad_enabled():
        return False
    return is_fillable(target) and not overlaps_itself(target)


def _dispatch(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    name = _ALIASES.get(name, name)
    if name in METADATA or name in LIKE:
        if name in LIKE:
            kwargs = {"device": "cpu", **{k: v for k, v in kwargs.items() if v is not None}}
        args, kwargs = _replace((args, kwargs), lambda lazy: torch.empty(lazy.dims, dtype=lazy.dtype, device="meta"))
        return func(*args, **kwargs)
    lazily = _structural(name, args, kwargs)
    if lazily is not None:
        return lazily()
    args, kwargs = _read((args, kwargs))
    return func(*args, **kwargs)


def _structural(name: str, args: Any, kwargs: Any) -> Any:
    """The call that builds nodes, or None where torch has to compute."""
    kwargs = {_KEYWORDS.get(key, key): value for key, value in kwargs.items()}
    if name in ("stack", "cat"):
        tensors = kwargs.pop("tensors", None) if not args else args[0]
        wrapped = [node for value in tensors or () if (node := wrap(value)) is not None]
        if len(wrapped) != len(tensors or ()) or set(kwargs) - {"dim"}:
            return None
        return partial(_join, name, wrapped, *args[1:], **kwargs)
    if name == "movedim" or name == "moveaxis":
        return partial(_movedim, *args, **kwargs)
    if name not in METHODS:
        return None
    node, *rest = args or (kwargs.pop("input", None),)
    if not isinstance(node, LazyTensor):
        return None  # tensor.view_as(lazy) and the like
    for key in ("dims", "shape", "size"):  # torch.permute(x, dims=…)
        if key in kwargs:
            rest.append(kwargs.pop(key))
    if name == "view" and rest and isinstance(rest[0], torch.dtype):
        return None  # other bits, other size
    return partial(METHODS[name], node, *rest, **kwargs)


def wrap(value: Any) -> LazyTensor | None:
    """A lazy tensor as it is, a copy of a plain one; None for what must stay with torch (gradients, subclasses)."""
    if isinstance(value, LazyTensor):
        return value
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or (value.requires_grad and torch.is_grad_enabled()):
        return None
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_conj() or value.is_neg():
        return None
    copy = value.detach().clone()  # as torch's own stack and cat copy: the caller may reuse the buffer at once
    return LazyTensor(InMemory(copy), (), tuple(copy.shape), dtypes.from_torch(copy.dtype))


def _join(name: str, nodes: list[LazyTensor], dim: int = 0) -> LazyTensor:
    """stack or cat, with torch's promotion of unequal dtypes."""
    if name == "cat" and any(node.dims != (0,) for node in nodes):
        nodes = [node for node in nodes if node.dims != (0,)]  # torch lets empty vectors join anything
    common = dtypes.from_torch(reduce(torch.promote_types, [node.dtype for node in nodes]))
    nodes = [cast(node, common) for node in nodes]
    return stack(tuple(nodes), dim) if name == "stack" else concat(tuple(nodes), dim)


def _movedim(input: LazyTensor, source: Any, destination: Any) -> LazyTensor:
    sources, targets = ([dims] if isinstance(dims, int) else list(dims) for dims in (source, destination))
    place = {axis_of(input, b): axis_of(input, a) for a, b in zip(sources, targets, strict=True)}
    others = iter(k for k in range(input.ndim) if k not in place.values())
    return METHODS["permute"](input, *(place[k] if k in place else next(others) for k in range(input.ndim)))  # type: ignore[no-any-return]


def _read(values: Any) -> Any:
    """The same nest of values with every lazy tensor read, each once."""
    read: dict[int, torch.Tensor] = {}

    def tensor_of(lazy: LazyTensor) -> torch.Tensor:
        if id(lazy) not in read:
            read[id(lazy)] = lazy.materialize()
        return read[id(lazy)]

    return _replace(values, tensor_of)


def _replace(values: Any, function: Any) -> Any:
    if isinstance(values, LazyTensor):
        return function(values)
    if isinstance(values, dict):
        return {key: _replace(value, function) for key, value in values.items()}
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(_replace(value, function) for value in values))
    if type(values) in (list, tuple):
        return type(values)(_replace(value, function) for value in values)
    return values


def _has_lazy(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, LazyTensor) for item in value)
    return isinstance(value, LazyTensor)


def _writes(name: str) -> bool:
    """In-place by torch's naming: add_, __iadd__, __setitem__, but not __add__."""
    if name.startswith("__"):
        return name in ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__")
    return name.endswith("_")


def _refusal(name: str) -> ReadOnlyError:
    if name in NO_MEMORY:
        return ReadOnlyError(
            f"{name}: a lazy tensor has no memory and no gradient; materialize() gives a torch.Tensor that has, "
            "lazysd.load_into fills the parameters of a module"
        )
    return ReadOnlyError(f"{name} would write into a lazy tensor; {WRITE_HINT}")


def _is_basic(key: Any) -> bool:
    items = key if isinstance(key, tuple) else (key,)
    return all(item is None or item is ... or type(item) in (int, slice) for item in items)


def _cuda_device(device: Any = None, *args: Any, **kwargs: Any) -> Any:
    return "cuda" if device is None else device

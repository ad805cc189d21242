"""torch's own functions and methods on lazy tensors.

Structural functions stay lazy: they are LazyTensor's methods of the same names. Functions of shape and dtype alone are
answered by a meta tensor; whatever writes into a lazy tensor is refused. Everything else reads its lazy arguments and
runs on torch tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import dtypes
from ..arguments import as_int
from ..errors import UnsupportedCheckpointError
from ..graph.leaves import FileRange, InMemory
from ..graph.rewrite import cast, concat, stack
from ..move.target import is_dtensor, is_fillable, overlaps_itself
from .lazy import LazyTensor
from .writing import refuse, refuse_writes

# Functions that are methods of lazy tensors, under these names.
STRUCTURAL = frozenset(
    (
        *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t"),
        *("reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze"),
        *("select", "narrow", "split", "chunk", "unbind"),
        *("to", "float", "double", "half", "bfloat16", "cpu", "cuda", "contiguous", "detach", "clone"),
        *("dim", "ndimension", "size", "stride", "numel", "nelement", "element_size"),
        *("is_floating_point", "is_complex", "is_contiguous"),
    )
)
# Functions and methods of shape and dtype alone.
METADATA = {"is_signed", "is_conj", "is_neg", "is_inference", "storage_offset", "get_device", "result_type"}
METADATA |= {"is_same_size", "can_cast"}
LIKE = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"}
LIKE |= {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}
_JOINING = {"stack": "stack", "cat": "cat", "concat": "cat", "concatenate": "cat"}
_KEYWORDS = {"axis": "dim", "split_size_or_sections": "split_size"}
_FIRST = ("input", "self", "tensor", "x")  # names of the first argument


def reading_method(node: LazyTensor, name: str) -> Callable[..., Any]:
    """Method `name` of torch.Tensor that LazyTensor does not define itself. Looking it up reads nothing."""
    if name in ("H", "mH"):
        node._real(name)  # the property has raised; repeat the reason
    attribute = getattr(torch.Tensor, name, None)
    if name.startswith("_") or not callable(attribute):
        raise AttributeError(f"LazyTensor has no attribute {name!r}; materialize() gives a torch.Tensor")

    def method(*args: Any, **kwargs: Any) -> Any:
        return torch_function(attribute, (), (node, *args), kwargs)

    method.__name__, method.__doc__ = name, attribute.__doc__
    return method


def torch_function(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """torch.<func>(…) with a lazy tensor somewhere in its arguments."""
    name = getattr(func, "__name__", str(func))
    refuse_writes(func, name, args, kwargs)
    if name == "__setitem__" and _is_basic(args[1]):  # target[3:5] = lazy goes straight into the slice
        target = args[0][args[1]]
        if isinstance(args[2], LazyTensor) and tuple(target.shape) == args[2].dims:
            return target.copy_(args[2])
    elif name == "copy_":
        source = args[1] if len(args) > 1 else kwargs.get("other")
        if args and isinstance(source, LazyTensor) and _can_fill(args[0], source):
            return source.materialize(out=args[0])
    elif func is torch.equal and len(args) == 2 and _shape(args[0]) != _shape(args[1]):
        return False
    elif name in METADATA or name in LIKE:
        if name in LIKE:
            kwargs = {"device": "cpu", **{k: v for k, v in kwargs.items() if v is not None}}
        args, kwargs = _replace((args, kwargs), lambda lazy: torch.empty(lazy.dims, dtype=lazy.dtype, device="meta"))
        return func(*args, **kwargs)
    elif name in _JOINING and (joined := _joined(_JOINING[name], args, kwargs)) is not None:
        return joined
    elif name in STRUCTURAL and isinstance(node := _first(args, kwargs), LazyTensor):
        named = {_KEYWORDS.get(k, k): v for k, v in kwargs.items() if args or k not in _FIRST}
        return getattr(node, name)(*args[1:], **named)
    return _on_values(func, name, args, kwargs)


def operate(node: LazyTensor, name: str, others: Any) -> Any:
    """An operator: read both sides and let torch decide."""
    comparable = (LazyTensor, torch.Tensor, int, float, complex)
    if name in ("__eq__", "__ne__") and not (isinstance(others[0], comparable) or hasattr(others[0], "__array__")):
        return NotImplemented  # lazy == None is False, and reads nothing
    left, *values = _Read().of((node, *others))
    if values and hasattr(values[0], "__array__") and not isinstance(values[0], torch.Tensor):
        values[0] = torch.as_tensor(values[0])
    return getattr(left, name)(*values)


def _shape(value: Any) -> Any:
    return tuple(getattr(value, "shape", ()))


def _first(args: Any, kwargs: Any) -> Any:
    """A function's first argument, by place or by name."""
    return args[0] if args else next((kwargs[key] for key in _FIRST if key in kwargs), None)


def _can_fill(target: Any, node: LazyTensor) -> bool:
    """Whether filling `target` in place does what `target.copy_(tensor)` would do."""
    if is_dtensor(target):
        return tuple(target.shape) == node.dims and not torch.is_grad_enabled()
    if type(target) not in (torch.Tensor, torch.nn.Parameter) or tuple(target.shape) != node.dims:
        return False
    if target.requires_grad and torch.is_grad_enabled():
        return False
    return is_fillable(target) and not overlaps_itself(target)


def _joined(name: str, args: Any, kwargs: Any) -> LazyTensor | None:
    """stack or cat, with torch's promotion of unequal dtypes; None where torch has to compute, or to complain."""
    given: Any = dict(zip(("tensors", "dim"), args, strict=False)) | kwargs
    tensors, dim = given.get("tensors"), given.get("dim", given.get("axis", 0))
    if not isinstance(tensors, (list, tuple)) or len(args) + len(kwargs) != len(given) or len(args) > 2:
        return None
    if set(given) - {"tensors", "dim", "axis"} or {"dim", "axis"} <= set(given):
        return None
    if not all(isinstance(value, LazyTensor) or _can_copy(value) for value in tensors):
        return None
    empties = [torch.empty(0, dtype=dtype, device="cpu") for dtype in dict.fromkeys(t.dtype for t in tensors)]
    try:
        code = dtypes.from_torch(torch.cat(empties).dtype)
        nodes = [cast(_node(value), code) for value in tensors]
    except UnsupportedCheckpointError:  # a dtype that no file holds
        return None
    if name == "cat" and any(node.dims != (0,) for node in nodes):
        nodes = [node for node in nodes if node.dims != (0,)]  # torch lets empty vectors join anything
    return (stack if name == "stack" else concat)(tuple(nodes), as_int("dim", dim))


def _can_copy(value: Any) -> bool:
    """Whether a value is a plain tensor, which a lazy one may be joined to; others (gradients, CUDA) are torch's."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or (value.requires_grad and torch.is_grad_enabled()):
        return False
    return value.layout == torch.strided and value.device.type == "cpu" and not (value.is_conj() or value.is_neg())


def _node(value: Any) -> LazyTensor:
    """A lazy tensor as it is; a copy of a plain one, as torch's stack and cat copy: the caller may reuse it at once."""
    if isinstance(value, LazyTensor):
        return value
    code = dtypes.from_torch(value.dtype)
    return LazyTensor(InMemory(value.detach().clone()), (), tuple(value.shape), code)


def _on_values(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The function on what the lazy tensors hold. Should it write into one after all, that is undone and refused."""
    read = _Read()
    args, kwargs = read.of((args, kwargs))
    try:
        result = func(*args, **kwargs)
    finally:
        written = read.undo_writes()
    if written:
        refuse(name)
    return result


class _Read:
    """Lazy tensors read for one call, each once."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[LazyTensor, torch.Tensor, int]] = {}

    def of(self, values: Any) -> Any:
        """The same nest of values with every lazy tensor read."""
        return _replace(values, self._tensor)

    def _tensor(self, lazy: LazyTensor) -> torch.Tensor:
        if id(lazy) not in self._tensors:
            with torch.inference_mode(False):  # torch counts no edits of tensors made in inference mode
                tensor = lazy.materialize()
            self._tensors[id(lazy)] = lazy, tensor, tensor._version
        return self._tensors[id(lazy)][1]

    def undo_writes(self) -> bool:
        """Whether the call has written into a tensor. A view of a mapped file shares its memory: it is read anew."""
        changed = [(lazy, tensor) for lazy, tensor, version in self._tensors.values() if tensor._version != version]
        for lazy, tensor in changed:
            if isinstance(lazy.op, FileRange) and tuple(tensor.shape) == lazy.dims:
                lazy.materialize(out=tensor)
        return bool(changed)


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


def _is_basic(key: Any) -> bool:
    items = key if isinstance(key, tuple) else (key,)
    return all(item is None or item is ... or type(item) in (int, slice) for item in items)

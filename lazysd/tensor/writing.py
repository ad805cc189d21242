"""Which arguments a torch function writes into: nothing may be written into a lazy tensor, and nothing be lost.

torch's own schemas say it, for every operator. What they do not say (running statistics, embeddings that renormalise
their weight) stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

import torch
from torch.nn import functional

from ..errors import ReadOnlyError
from .lazy import LazyTensor
from .operators import WRITE_HINT

NO_MEMORY = {"data_ptr", "storage", "untyped_storage", "register_hook", "backward", "retain_grad", "requires_grad_"}
_IN_PLACE = (
    *("__setitem__", "__delitem__", "__idiv__", "__iadd__", "__isub__", "__imul__", "__itruediv__"),
    *("__ifloordiv__", "__imod__", "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"),
)

# Functions that write running statistics: where these stand, and where the flag that they do (None: always) with its
# default. Source: signatures of torch 2.13.
_STATISTICS: dict[Any, tuple[int, int, int | None, str, bool]] = {
    functional.batch_norm: (1, 2, 5, "training", False),
    functional.instance_norm: (1, 2, 5, "use_input_stats", True),
    "instance_norm": (3, 4, 5, "use_input_stats", True),
    **dict.fromkeys(("batch_norm", "native_batch_norm", "cudnn_batch_norm"), (3, 4, 5, "training", True)),
    **dict.fromkeys(("miopen_batch_norm", "_batch_norm_impl_index"), (3, 4, 5, "training", True)),
    "_native_batch_norm_legit": (3, 4, 5, "training", True),
    "_batch_norm_with_update": (3, 4, None, "", True),
    "batch_norm_update_stats": (1, 2, None, "", True),
    **dict.fromkeys(("batch_norm_gather_stats", "batch_norm_gather_stats_with_counts"), (3, 4, None, "", True)),
}
# Operators of TorchScript's lists, not of tensors, under the names of some that read.
_LIST_OPERATORS = ("append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort", "Delete", "_set_item")
_RENORMALISING = (functional.embedding, functional.embedding_bag)  # their weight, where max_norm is given
_MAX_NORM = 3


def refuse_writes(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise ReadOnlyError if the call writes into a lazy tensor."""
    base = name.partition(".")[0]  # torch.ops.aten.add_.Tensor
    written = [kwargs.get("out")]
    if base in _IN_PLACE or (kwargs.get("inplace") is True):
        written.append(args[0] if args else next(iter(kwargs.values()), None))
    for position, parameter in written_by(base):
        written.append(args[position] if position is not None and position < len(args) else kwargs.get(parameter))
    written += _statistics(func, base, args, kwargs)
    if func in _RENORMALISING and (args[_MAX_NORM] if len(args) > _MAX_NORM else kwargs.get("max_norm")) is not None:
        written += [args[1] if len(args) > 1 else kwargs.get("weight")]
    if base in NO_MEMORY or any(map(_has_lazy, written)):
        refuse(name)


def refuse(name: str) -> NoReturn:
    """Raise ReadOnlyError: what cannot be had of a lazy tensor."""
    if name in NO_MEMORY:
        raise ReadOnlyError(
            f"{name}: a lazy tensor has no memory and no gradient; materialize() gives a torch.Tensor that has, "
            "lazysd.load_into(module, ckpt) fills the parameters of a module, and dict(ckpt.iter_tensors()) is a state "
            "dict of tensors for load_state_dict(..., assign=True) or from_pretrained(None, state_dict=...)"
        )
    raise ReadOnlyError(f"{name} would write into a lazy tensor; {WRITE_HINT}")


@cache
def written_by(name: str) -> tuple[tuple[int | None, str], ...]:
    """(position, name) of the tensors that any overload of an operator writes into; by name alone for those of out=."""
    if name in _LIST_OPERATORS:
        return ()
    schemas: Callable[[str], Any] = torch._C._jit_get_schemas_for_operator
    found: set[tuple[int | None, str]] = {
        (None if argument.kwarg_only else position, argument.name)
        for schema in schemas(f"aten::{name}")
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write and "Tensor" in str(argument.type)
    }
    if name.endswith("_") and not name.startswith("__"):
        found.add((0, "input"))
    return tuple(found)


def _statistics(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    place = _STATISTICS.get(func) or _STATISTICS.get(name)
    if place is None:
        return []
    mean, var, flag, parameter, default = place
    given = args[flag] if flag is not None and len(args) > flag else kwargs.get(parameter, default)
    if not given:
        return []
    found = [kwargs.get("running_mean"), kwargs.get("running_var")]
    return [*found, *(args[position] for position in (mean, var) if position < len(args))]


def _has_lazy(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, LazyTensor) for item in value)
    return isinstance(value, LazyTensor)

"""What users hand in: torch tensors become leaves of a graph, functions are called as they want to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import dtypes
from ..graph.leaves import InMemory
from .lazy import LazyTensor


def as_lazy(value: Any) -> LazyTensor:
    """A lazy tensor as it is, a torch tensor wrapped."""
    return value if isinstance(value, LazyTensor) else from_torch(value)


def from_torch(tensor: Any) -> LazyTensor:
    """A lazy tensor over a torch tensor in memory; strided views stay views, conjugated ones are copied.

    >>> import torch, lazysd
    >>> lazysd.from_torch(torch.zeros(2, 3)).permute(1, 0).shape
    torch.Size([3, 2])
    """
    tensor = tensor.resolve_conj().resolve_neg()  # the very same object, unless its bits are not its values
    return LazyTensor(InMemory(tensor), (), tuple(tensor.shape), dtypes.from_torch(tensor.dtype))


def takes_key(function: Callable[..., Any]) -> bool:
    """Whether a function's first parameter is named `key`."""
    import inspect

    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # torch.neg and other functions written in C
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if positional and positional[0].name == "key":
        return True
    if sum(p.default is p.empty for p in positional) > 1:
        raise TypeError(
            f"map calls function(tensor), and this one needs {[p.name for p in positional]}; name its first parameter "
            "'key', or say with_key=True, to be called as function(key, tensor)"
        )
    return False

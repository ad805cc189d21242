"""What users hand in: torch tensors become leaves of a graph, functions are called as they want to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import dtypes
from ..graph.leaves import InMemory
from .lazy import LazyTensor


def as_lazy(value: Any, at_once: bool = False) -> LazyTensor:
    """A lazy tensor as it is, a torch tensor wrapped.

    `at_once`: it is read before anybody can edit the tensor, so that no copy is ever needed.
    """
    if isinstance(value, LazyTensor):
        return value
    return from_torch(value) if not at_once else _leaf(_checked(value))


def from_torch(tensor: Any) -> LazyTensor:
    """Wrap a torch tensor in memory, so that it can take part in graphs, checkpoints and saves.

    Copies nothing: the lazy tensor keeps the tensor's memory alive and stands for its values at this moment, strided
    views included. It goes on doing so when the tensor is given other memory (`module.half()`, `resize_`, `.data =`);
    once the memory itself has been written to, reading raises. torch counts these edits; it counts none that are made
    through `.data`, numpy or a fused optimizer: wrap again after those. Conjugated tensors and tensors made under
    inference_mode, whose edits nobody counts, are copied now.

    >>> import torch, lazysd
    >>> weight = torch.zeros(2, 3)
    >>> lazysd.from_torch(weight).permute(1, 0).shape
    torch.Size([3, 2])

    Args:
        tensor: a dense torch.Tensor or Parameter on any device, of a dtype that safetensors has.

    Returns:
        A LazyTensor of the same shape and dtype.

    Raises:
        TypeError: no torch tensor, or one spread over ranks. ValueError: a tensor that is not dense.
        UnsupportedCheckpointError: safetensors has no such dtype.
        SourceChangedError, later, when it is read: the tensor has been edited in place.
    """
    tensor = _checked(tensor)
    return _leaf(tensor.clone() if tensor.is_inference() else tensor)


def _checked(tensor: Any) -> Any:
    """The very same tensor, unless its bits are not its values. Raises TypeError, ValueError."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        hint = "; torch.from_numpy(array) makes one of an array" if hasattr(tensor, "__array_interface__") else ""
        raise TypeError(f"a torch.Tensor is needed here, got {type(tensor).__name__}{hint}")
    if hasattr(tensor, "__tensor_flatten__"):
        raise TypeError(
            f"cannot wrap a {type(tensor).__name__}: its elements are kept in other tensors; "
            "wrap these (of a DTensor, to_local() or full_tensor())"
        )
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)
        raise ValueError(f"cannot wrap a {kind} tensor, only dense ones; call to_dense() or dequantize() first")
    if torch.nn.parameter.is_lazy(tensor):
        raise ValueError("cannot wrap a parameter that has no shape yet; run the module once, or load it first")
    return tensor.resolve_conj().resolve_neg()


def _leaf(tensor: Any) -> LazyTensor:
    code = dtypes.from_torch(tensor.dtype)
    return LazyTensor(InMemory(tensor), (), tuple(tensor.shape), code)


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

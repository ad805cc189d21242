"""Buffers that no checkpoint holds (rotary tables, position ids): computed where the model says how.

Source: transformers 5.23, PreTrainedModel._init_weights, which writes such buffers in place through functions that pass
over tensors marked `_is_hf_initialized`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)
_MARK = "_is_hf_initialized"


def compute(module: nn.Module, device: torch.device | None) -> None:
    """Give the module's non-persistent buffers on meta the values that its model computes for them.

    One that nothing computes stays on meta, and a log line has the code to put it in place.

    Args:
        device: where they end up; None is the CPU.
    """
    unknown: list[str] = []
    for prefix, owner, model in _owners(module):
        waiting = _waiting(owner)
        done = set() if model is None else _compute_in(owner, model, waiting, device or torch.device("cpu"))
        unknown += [f"{prefix}.{name}".lstrip(".") for name in waiting if name not in done]
    if unknown:
        part = f"get_submodule({unknown[0].rpartition('.')[0]!r})"
        logger.warning(
            "%d buffers are on the meta device: no checkpoint holds them, and the model does not say how to compute "
            "them (first %s). Take them from the same model built off meta, of as few layers as has that part:\n"
            "    model.%s._buffers.update(fresh.%s._buffers)",
            len(unknown), unknown[0], part, part,
        )  # fmt: skip


def _owners(module: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """(name, module, the innermost model of transformers around it) of each part with buffers to compute."""
    models = {prefix: part for prefix, part in module.named_modules() if _says_how(part)}
    for prefix, part in module.named_modules():
        if _waiting(part):
            around = [name for name in models if not name or prefix == name or prefix.startswith(name + ".")]
            yield prefix, part, models[max(around, key=len)] if around else None


def _says_how(module: nn.Module) -> bool:
    """Whether it is a model of transformers' own (5 or later): other code may write over parameters that are loaded."""
    ours = hasattr(module, "_init_weights") and type(module).__module__.startswith("transformers.")
    return ours and importlib.util.find_spec("transformers.initialization") is not None


def _waiting(owner: nn.Module) -> dict[str, torch.Tensor]:
    volatile = owner._non_persistent_buffers_set
    return {n: b for n, b in owner._buffers.items() if b is not None and b.is_meta and n in volatile}


def _compute_in(owner: nn.Module, model: Any, waiting: Mapping[str, torch.Tensor], device: torch.device) -> set[str]:
    """Compute a part's buffers twice, over zeros and over ones: what comes out alike was computed, all of it."""
    made: list[dict[str, torch.Tensor]] = []
    for byte in (0, 255):
        for name, buffer in waiting.items():
            dtype = torch.float32 if name.endswith("inv_freq") else buffer.dtype  # whatever the model was cast to
            bits = byte & 1 if dtype == torch.bool else byte
            fill = torch.full((buffer.numel() * dtype.itemsize,), bits, dtype=torch.uint8, device=device)
            owner._buffers[name] = fill.view(dtype).view(buffer.shape)
        with _loaded_stays(owner):
            model._init_weights(owner)
        made.append({name: owner._buffers[name] for name in waiting})  # type: ignore[misc]
    done = {name for name in waiting if _same_bits(made[0][name], made[1][name])}
    for name, buffer in waiting.items():
        if name not in done:
            owner._buffers[name] = buffer
    return done


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(*(side.contiguous().reshape(-1).view(torch.uint8) for side in (a, b)))


@contextlib.contextmanager
def _loaded_stays(owner: nn.Module) -> Iterator[None]:
    """While it lasts, transformers' initialisers pass over the part's parameters and saved buffers."""
    volatile = owner._non_persistent_buffers_set
    held = [*owner._parameters.values(), *(b for n, b in owner._buffers.items() if n not in volatile)]
    marked = [tensor for tensor in held if tensor is not None and not getattr(tensor, _MARK, False)]
    init = importlib.import_module("transformers.initialization")
    for tensor in marked:
        setattr(tensor, _MARK, True)
    try:
        with torch.no_grad(), init.guard_torch_init_functions():
            yield
    finally:
        for tensor in marked:
            delattr(tensor, _MARK)

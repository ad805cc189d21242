"""Memory for what decoding holds in between: a few buffers a thread, small enough for a core's cache, used again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 16  # values decoded at a time
_KEPT_NBYTES = 1 << 20  # of a buffer; larger ones (rows of more than CHUNK values) are let go
_held = threading.local()


def buffer(name: str, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Flat memory of `numel` elements, of any content. A thread's next buffer of that name is the same memory.

    Held as numpy arrays: a torch tensor made in inference mode could not be used outside of it.
    """
    import numpy as np
    import torch

    nbytes = numel * dtype.itemsize
    if device.type != "cpu" or nbytes > _KEPT_NBYTES:
        return torch.empty(numel, dtype=dtype, device=device)
    memory: Any = getattr(_held, name, None)
    if memory is None or len(memory) < nbytes:
        memory = np.empty(max(nbytes, 1), np.uint8)
        setattr(_held, name, memory)
    return torch.from_numpy(memory[:nbytes]).view(dtype)


def put(target: torch.Tensor, values: torch.Tensor) -> None:
    """As graph.compute.put, for dense values: what is rounded for a strided target is rounded in a buffer first."""
    if values.dtype != target.dtype and not target.is_contiguous():
        rounded = buffer("rounded", values.numel(), target.dtype, values.device).view(values.shape)
        rounded.copy_(values)
        values = rounded
    target.copy_(values)

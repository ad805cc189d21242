"""Fresh host memory in huge pages: touching it for the first time takes a fraction of the time."""

from __future__ import annotations

import mmap
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from .. import dtypes
from ..graph.boxes import Dims

if TYPE_CHECKING:
    import torch

HUGE_MIN_NBYTES = 4 << 20  # as numpy has it for its own arrays; less is no mapping of its own


def empty(dims: Dims, code: str, device: Any = "cpu") -> torch.Tensor:
    """A tensor whose values are about to be filled in."""
    import torch

    made = torch.empty(dims, dtype=dtypes.to_torch(code), device=device)
    if made.device.type == "cpu" and prod(dims) * dtypes.itemsize(code) >= HUGE_MIN_NBYTES:
        prefer_huge(made.data_ptr(), made.numel() * made.itemsize)
    return made


def prefer_huge(address: int, nbytes: int) -> None:
    """Ask the system for huge pages behind memory that nobody has touched. Where it has none, nothing changes."""
    advise = _madvise()
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if advise is not None and last > first:
        advise(first, last - first, mmap.MADV_HUGEPAGE)


@cache
def _madvise() -> Any:
    """The system's own call; Python has it for its maps alone."""
    import ctypes

    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):  # TypeError: a system whose libraries all have names
        return None
    advise.argtypes, advise.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return advise if hasattr(mmap, "MADV_HUGEPAGE") else None

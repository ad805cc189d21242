"""Casts between float types as integers say it: without torch, whose import costs more than casting a gigabyte."""

from __future__ import annotations

import sys
from itertools import permutations
from typing import TYPE_CHECKING, Any

from .. import dtypes

if TYPE_CHECKING:
    import numpy as np

CHUNK = 1 << 16  # elements at a time: what they take on their way stays in a core's cache
PAIRS = frozenset(permutations(("F16", "BF16", "F32"), 2))


def cast(source: str, code: str, target: Any, values: Any) -> bool:
    """Write the bits of dense values of dtype `source` into `target`, rounded to dtype `code`, both as integers.

    Returns False where torch has to do it: it is there already, or elements are on its device, or a NaN is among them,
    which torch spells as it likes on each processor. What has been written then is right, but not all.
    """
    import numpy as np

    if not isinstance(target, np.ndarray) or "torch" in sys.modules:
        return False
    made = target if target.flags.c_contiguous else np.empty(target.shape, target.dtype)
    into, out_of = made.reshape(-1), values.reshape(-1)
    for start in range(0, len(into), CHUNK):
        wide = _widened(out_of[start : start + CHUNK], source)
        if (source, code) != ("BF16", "F32") and np.isnan(wide).any():
            return False
        into[start : start + CHUNK] = _narrowed(wide, code)
    if made is not target:
        target[...] = made
    return True


def as_torch(values: Any, code: str) -> Any:
    """Integers of numpy or torch as a torch tensor of a float type that shares their memory."""
    import torch

    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(values.view(f"i{values.itemsize}"))
    return values.view(dtypes.to_torch(code))


def _widened(bits: np.ndarray[Any, Any], code: str) -> np.ndarray[Any, Any]:
    import numpy as np

    if code == "BF16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if code == "F16" else bits.view(np.float32)


def _narrowed(wide: np.ndarray[Any, Any], code: str) -> np.ndarray[Any, Any]:
    import numpy as np

    if code == "F16":
        with np.errstate(over="ignore", under="ignore"):
            return wide.astype(np.float16).view(np.uint16)
    bits = wide.view(np.uint32)
    if code == "F32":
        return bits
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)

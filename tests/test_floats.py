"""Casts without torch: the bits that torch makes, over every code of 16 bits, and where float32 is rounded."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from lazysd.graph import floats

CODE = """
import sys
import numpy as np
from lazysd.graph import floats

low = np.random.default_rng(0).integers(0, 1 << 16, 1 << 16, dtype=np.uint32)
every = np.arange(1 << 16, dtype=np.uint32)
exact = (every << 16) | 0x8000, (every << 16) | 0x7FFF, (every << 16) | 0x8001, (every << 16) | 0x1000, every << 13
held = {"F32": np.concatenate([every << 16, (every << 16) | low, *exact, low]), "F16": every.astype(np.uint16)}
held["BF16"] = held["F16"]
made = {}
for source, code in sorted(floats.PAIRS):
    values = held[source]
    wide = floats._widened(values, source)
    values = values[~np.isnan(wide)] if (source, code) != ("BF16", "F32") else values
    values = values[: len(values) // 6 * 6]
    for name in ("dense", "gaps"):
        size = values.reshape(2, 3, -1).shape
        target = np.zeros((*size[:2], 2 * size[2]), "u4" if code == "F32" else "u2")
        into = target[..., ::2] if name == "gaps" else target[..., : size[2]]
        into = np.zeros(size, target.dtype) if name == "dense" else into
        assert floats.cast(source, code, into, values.reshape(size)), (source, code)
        made[source, code, name] = values, into.copy().reshape(-1)
    if (source, code) != ("BF16", "F32"):
        nan = np.array([[0x7FC00000 if source == "F32" else 0x7FFF] * 3]).astype(values.dtype)
        assert not floats.cast(source, code, np.zeros((1, 3), "u4" if code == "F32" else "u2"), nan)
assert "torch" not in sys.modules
import torch
from lazysd import dtypes
for (source, code, name), (values, found) in made.items():
    wanted = floats.as_torch(values, source).to(dtypes.to_torch(code)).numpy() if code != "BF16" else None
    if wanted is None:
        wanted = floats.as_torch(values, source).to(torch.bfloat16).view(torch.int16).numpy()
    assert np.array_equal(wanted.view(found.dtype), found), (source, code, name)
    target = np.zeros(found.shape, found.dtype)
    assert not floats.cast(source, code, target, values)  # torch is there now
print(len(made))
"""


def test_the_bits_that_torch_makes() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("12", "")


@pytest.mark.parametrize("code", ["F16", "BF16"])
def test_a_wrong_rounding_is_seen(code: str) -> None:
    """Truncated bits differ where the test above looks."""
    values = (np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000 if code == "BF16" else np.uint32(0x3F801000)).reshape(
        -1
    )
    right = floats._narrowed(values.view(np.float32), "BF16" if code == "BF16" else "F16")
    assert (right != (values >> 16 if code == "BF16" else values * 0 + 0x3C01)).any()

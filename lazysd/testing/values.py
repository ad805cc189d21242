"""State dicts as short code: shapes, dtypes and a seed say all of it, so that a counterexample can be pasted."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from .. import dtypes
from ..arguments import as_int, checked


class StateDict(dict[str, torch.Tensor]):
    """A dict of tensors that knows how it was made: `repr()` is code that makes it again.

    Attributes:
        sizes: axis -> size, where a strategy drew it from a family's table ({"e": 3, "h": 4, "i": 2}).
        config: what the config.json of such a model says.
    """

    @checked
    def __init__(self, tensors: Mapping[str, torch.Tensor], seed: int = 0, **facts: Any) -> None:
        super().__init__(tensors)
        self.seed = seed
        self.sizes: dict[str, int] = facts.get("sizes", {})
        self.config: dict[str, Any] = facts.get("config", {})

    def __repr__(self) -> str:
        rows = (f"    {key!r}: ({dtypes.from_torch(t.dtype)!r}, {tuple(t.shape)})," for key, t in self.items())
        return "lazysd.testing.state_dict({\n" + "\n".join(rows) + f"\n}}, seed={self.seed})"


@checked
def state_dict(entries: Mapping[str, tuple[str, tuple[int, ...]]], seed: int = 0, **facts: Any) -> StateDict:
    """Tensors of these dtypes and shapes.

    >>> from lazysd.testing import state_dict
    >>> state_dict({"w": ("F32", (2, 2)), "b": ("F32", (2,))})["b"]
    tensor([4., 5.])

    Args:
        entries: key -> (safetensors dtype code, shape).
        seed: 0 counts the elements 0, 1, 2, ... through all tensors; anything else makes every bit random, NaN payloads
            and denormals included.
        facts: `sizes` and `config` of the result.

    Returns:
        A StateDict.
    """
    made: dict[str, torch.Tensor] = {}
    seed, at = as_int("seed", seed), 0
    for number, (key, (code, dims)) in enumerate(entries.items()):
        made[key] = random_tensor(code, dims, seed + number) if seed else counted(code, dims, at)
        at += prod(dims)
    return StateDict(made, seed, **facts)


def counted(code: str, dims: tuple[int, ...], first: int = 0) -> torch.Tensor:
    """first, first + 1, ... in this dtype, wrapped where few values are exact (127 for int8, 2 for bool)."""
    wrap = {"BOOL": 2, "F8_E4M3": 16, "F8_E5M2": 8, "F8_E8M0": 2, "F16": 2048, "BF16": 256}.get(code, 127)
    wrap = 1 << 23 if code in ("F32", "F64", "I32", "I64", "C64") else wrap
    numbers = torch.arange(first, first + prod(dims), dtype=torch.int64) % wrap
    if code == "F8_E8M0":  # powers of two: 0 is not among them
        return (numbers.to(torch.uint8) + 127).view(torch.float8_e8m0fnu).view(dims)
    return numbers.to(torch.float32).to(dtypes.to_torch(code)).view(dims)  # exact: at most 2**23


def random_bits(code: str, dims: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random bit patterns, NaN payloads and all, as integers of the dtype's width."""
    generator = torch.Generator().manual_seed(seed)
    nbytes = prod(dims) * dtypes.itemsize(code)
    high = 2 if code == "BOOL" else 256
    raw = torch.randint(0, high, (nbytes,), dtype=torch.uint8, generator=generator)
    return raw.view(dtypes.bits_dtype(code)).view(dims)


def random_tensor(code: str, dims: tuple[int, ...], seed: int) -> torch.Tensor:
    """A tensor of random bit patterns."""
    return random_bits(code, dims, seed).view(dtypes.to_torch(code))

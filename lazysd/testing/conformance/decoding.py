"""What every kernel that decodes few-bit weights keeps to. Inherit the class, say which one it is, run it with pytest.

class TestMyKernel(DecodeSuite):
    kernel = MyKernel()
"""

from __future__ import annotations

import random
from abc import ABC
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ... import dtypes
from ...quant.blocks import blocks_of
from ...quant.codes import FP4_VALUES
from ...quant.kernels.base import Kernel, Request

TARGETS = ("BF16", "F16", "F32")
INT4 = tuple(float(value - 8) for value in range(16))
EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8")
SIZES = (1, 2, 3, 5, 8, 16, 17, 31, 32, 33, 64, 100, 129)
# Scales that make subnormals of every type, overflow it, or fall between two of its values.
FACTORS: tuple[float, ...] = (1.0, -1.0, 0.0, -0.0, 0.37, 1 / 3, 3e38, -3e38, float("inf"), float("-inf"), float("nan"))
FACTORS += tuple(
    sign * 2.0**power * 1.2345 for power in (-149, -140, -133, -126, -24, -17, 7, 15, 120) for sign in (1, -1)
)


def expected(wanted: Request, code: str) -> torch.Tensor:
    """What a request stands for, by numpy, element by element; rounded by torch."""
    lead = tuple(wanted.codes.shape[:-2])
    dims = (*lead, len(wanted.rows), len(wanted.columns))
    raw, places = wanted.codes.contiguous().view(torch.uint8).numpy(), np.arange(len(wanted.columns))
    if wanted.per_word > 1:
        nibbles = np.stack([raw & 15, raw >> 4], -1).reshape(*raw.shape[:-1], -1)
        first = blocks_of(wanted.columns, wanted.per_word)
        words = [(at // wanted.per_word - first.start) // first.step for at in wanted.columns]
        places = np.array(words) * wanted.per_word + np.array(wanted.columns) % wanted.per_word
        codes = nibbles[..., places]
        table = np.array(wanted.values, np.float32)
    else:
        codes = raw
        kind = dtypes.to_torch(str(wanted.values))
        table = torch.arange(256, dtype=torch.uint8).view(kind).float().numpy()
    scale = torch.exp2(wanted.scale.double() - 127) if dtypes.from_torch(wanted.scale.dtype) == "U8" else wanted.scale
    factors = scale.double().numpy() if wanted.is_exponents else scale.float().numpy()
    with np.errstate(all="ignore"):
        if wanted.total is not None:
            total = wanted.total.numpy()
            factors = factors / total if wanted.divides else factors * total
        zeros = np.float32(wanted.zero) if wanted.zeros is None else _spread(wanted.zeros.numpy(), wanted)
        made = (table[codes] - zeros) * _spread(factors, wanted)
        return torch.from_numpy(np.broadcast_to(made, dims).astype(np.float32)).to(dtypes.to_torch(code))


def _spread(numbers: np.ndarray[Any, Any], wanted: Request) -> np.ndarray[Any, Any]:
    """Numbers of blocks, one a wanted value."""
    for dim, axis, size in ((-2, wanted.rows, wanted.block[0]), (-1, wanted.columns, wanted.block[1])):
        blocks = blocks_of(axis, size)
        numbers = np.take(numbers, [blocks.index(at // size) for at in axis], axis=dim)
    return numbers


def requests(seed: int, count: int) -> Iterator[Request]:
    """Random requests: every kind of codes and scales, any stretch and step of an axis, stacks of matrices."""
    random_ = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(count):
        per_word = random_.choice((1, 1, 2, 2, 8))
        block = (random_.choice((1, 1, 3, 16)) if per_word == 1 else 1, random_.choice((2, 8, 16, 32, 50, 128, 600)))
        block = (block[0], 1) if per_word == 1 and random_.random() < 0.2 else block
        rows, columns = (_axis(random_) for _ in range(2))
        lead = random_.choice(((), (), (3,), (2, 2)))
        stored = len(blocks_of(columns, per_word)) * (4 if per_word == 8 else 1)
        codes = torch.randint(0, 256, (*lead, len(rows), stored), dtype=torch.uint8)
        codes = codes.view(torch.int32) if per_word == 8 else codes
        values: Any = random_.choice(EIGHT_BITS) if per_word == 1 else random_.choice((FP4_VALUES, INT4))
        shape = (*lead, len(blocks_of(rows, block[0])), len(blocks_of(columns, block[1])))
        scale = _scales(random_.choice(("F32", "BF16", "F16", "U8", "F8_E8M0", "F8_E4M3")), shape)
        wanted = Request(
            codes.view(dtypes.to_torch(values)) if per_word == 1 else codes,
            values,
            per_word,
            scale,
            rows,
            columns,
            block,
        )
        choice = random_.choice(("", "", "total", "divides", "zero", "zeros"))
        if choice in ("total", "divides"):
            wanted = replace(wanted, total=torch.tensor([0.0173]), divides=choice == "divides")
        elif choice == "zero":
            wanted = replace(wanted, zero=8.0)
        elif choice == "zeros":
            wanted = replace(wanted, zeros=torch.randint(-8, 8, shape).float())
        yield wanted


def _axis(random_: random.Random) -> range:
    size, step = random_.choice(SIZES), random_.choice((1, 1, 1, 2, 3, 8, 16, 24, 100))
    start = random_.choice((0, 0, 1, 5, 16, 77))
    return range(start, start + random_.randint((size - 1) * step + 1, size * step), step)


def _scales(code: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Scales of any value that the type has."""
    if dtypes.itemsize(code) == 1:
        return torch.randint(0, 256, shape, dtype=torch.uint8).view(dtypes.to_torch(code))
    factors = torch.tensor(FACTORS)
    return factors[torch.randint(0, len(factors), shape)].to(dtypes.to_torch(code))


def integers(tensor: torch.Tensor) -> torch.Tensor:
    """Values as integers, every NaN alike."""
    bits = tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)
    return bits.masked_fill(tensor.isnan(), 0x7FC0)


class DecodeSuite(ABC):
    """Tests of one kernel."""

    kernel: Kernel

    def decoded(self, wanted: Request, code: str, order: str = "rows") -> torch.Tensor:
        """What the kernel makes of a request, in memory of which nothing else has changed."""
        dims = (*wanted.codes.shape[:-2], len(wanted.rows), len(wanted.columns))
        numel = int(np.prod(dims))
        memory = torch.full((3 * numel + 7,), 7.0, dtype=dtypes.to_torch(code))
        if order == "columns":
            target = memory[3 : 3 + numel].view(*dims[:-2], dims[-1], dims[-2]).transpose(-1, -2)
        elif order == "gaps":
            target = memory[3 : 3 + 2 * numel].view(*dims[:-1], 2 * dims[-1])[..., 1::2]
        elif order == "rows apart":
            target = memory[3 : 3 + 2 * numel].view(*dims[:-1], 2 * dims[-1])[..., : dims[-1]]
        else:
            target = memory[3 : 3 + numel].view(dims)
        self.kernel.decode(target, wanted)
        made = target.clone(memory_format=torch.contiguous_format)
        target.fill_(7.0)
        assert bool((memory == 7.0).all()), "it wrote beside its target"
        return made

    def check(self, wanted: Request, code: str, order: str = "rows") -> None:
        found, right = integers(self.decoded(wanted, code, order)), integers(expected(wanted, code))
        assert torch.equal(found, right), f"{int((found != right).sum())} of {right.numel()} values differ: {wanted}"

    def test_says_what_it_is(self) -> None:
        assert self.kernel.name
        assert self.kernel.takes(torch.empty(1, dtype=torch.bfloat16))

    @pytest.mark.parametrize("code", TARGETS)
    @pytest.mark.parametrize("scale_code", ["U8", "F8_E8M0", "F8_E4M3"])
    @pytest.mark.parametrize("total", [None, 0.0173, 3e-39, float("nan")])
    def test_every_nibble_under_every_byte(self, code: str, scale_code: str, total: float | None) -> None:
        codes = (torch.arange(128, dtype=torch.uint8) * 17).repeat(256, 1)  # a nibble twice in each byte
        scale = torch.arange(256, dtype=torch.uint8).view(dtypes.to_torch(scale_code)).view(256, 1).repeat(1, 8)
        wanted = Request(codes, FP4_VALUES, 2, scale, range(256), range(256), (1, 32))
        if total is not None:
            wanted = replace(wanted, total=torch.tensor([total]))
            self.check(replace(wanted, divides=True), code)
        self.check(wanted, code, "columns")

    @pytest.mark.parametrize("code", TARGETS)
    @pytest.mark.parametrize("values", EIGHT_BITS)
    def test_every_byte_under_many_scales(self, code: str, values: str) -> None:
        n = len(FACTORS)
        codes = torch.arange(256, dtype=torch.uint8).view(dtypes.to_torch(values)).repeat(n * 3, 1)
        for size, zero in ((1, 0.0), (32, 8.0), (256, 0.0)):  # one by one, and looked up
            scale = torch.tensor(FACTORS).view(n, 1).repeat(1, 256 // size)
            self.check(Request(codes, values, 1, scale, range(3 * n), range(256), (3, size), zero=zero), code)

    @pytest.mark.parametrize("code", TARGETS)
    def test_rounds_half_to_even(self, code: str) -> None:
        bits = torch.randint(-(2**31), 2**31, (1 << 14,), dtype=torch.int32)
        bits[::2] = bits[::2] & ~0x1FFF | 0x1000  # halves of float16, and near ones
        bits[1::4] = bits[1::4] & ~0xFFFF | 0x8000  # of bfloat16
        scale = bits.view(torch.float32)
        scale[: 1 << 12] = torch.rand(1 << 12) * 2.0**-14  # subnormals of float16
        codes = torch.ones(1, 1 << 14, dtype=torch.int8)
        self.check(Request(codes, "I8", 1, scale.view(1, -1), range(1), range(1 << 14), (1, 1)), code)

    @pytest.mark.parametrize("order", ["rows", "columns", "gaps", "rows apart"])
    @pytest.mark.parametrize("seed", range(2))
    def test_any_stretch_of_any_weight(self, seed: int, order: str) -> None:
        for number, wanted in enumerate(requests(seed, 40)):
            self.check(wanted, TARGETS[number % 3], order)

    def test_nothing_to_do(self) -> None:
        for rows, columns in ((0, 4), (3, 0)):
            codes, scale = torch.empty(rows, columns, dtype=torch.uint8), torch.empty(rows, columns)
            wanted = Request(codes, "U8", 1, scale, range(rows), range(columns), (1, 1))
            self.kernel.decode(torch.empty(rows, columns, dtype=torch.bfloat16), wanted)

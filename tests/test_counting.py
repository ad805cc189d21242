"""The kernels that count and sum up elements: each held to numpy in float64, whatever the bits and their number."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lazysd
from lazysd import dtypes
from lazysd.counting import chosen
from lazysd.counting.kernels import compiled, plain
from lazysd.counting.kernels.base import Kernel
from lazysd.counting.tally import Tally
from lazysd.counting.values import COUNTED, NUMBERS, SUMMED, as_float64, element, values

PIECE, LANES = 4096, 4  # of the C code
KERNELS = [pytest.param(kernel, id=kernel.name) for kernel in chosen.members()]
SIZES = st.sampled_from([PIECE, 2 * PIECE, plain.CHUNK, LANES, 0, 300]).flatmap(
    lambda size: st.integers(max(0, size - 9), size + 9)
)
KINDS = ("noise", "weights", "equal", "zeros", "odd")


def made(code: str, numel: int, kind: str, seed: int) -> np.ndarray[Any, Any]:
    """Flat bytes: bits at random (NaN payloads, subnormals), numbers around 1, or few values only."""
    rng = np.random.default_rng(seed)
    size = dtypes.itemsize(code)
    noise = rng.integers(0, 256, numel * size, np.uint8)
    if kind == "noise" or not numel:
        return noise
    torch_dtype = dtypes.to_torch(code)
    numbers = torch.from_numpy(rng.standard_normal(numel))
    if kind == "equal":
        numbers.fill_(float(rng.integers(0, 2)))
    if kind == "zeros":
        numbers = torch.where(numbers > 0, 0.0, -0.0)
    if kind == "odd" and numel:
        numbers[:: rng.integers(1, 9)] = (math.nan, math.inf, -math.inf)[rng.integers(0, 3)]
    if not torch_dtype.is_floating_point:
        numbers = numbers.nan_to_num(0, 5, -5).mul(20).abs().clamp(0, 1 if code == "BOOL" else 100)
    found: np.ndarray[Any, Any] = numbers.to(torch_dtype).view(torch.uint8).numpy()
    return found


def wide_of(code: str, held: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The oracle: torch's own conversion."""
    if code == "BOOL" or not len(held):
        return held.astype(np.float64)
    found: np.ndarray[Any, Any] = torch.from_numpy(held.copy()).view(dtypes.to_torch(code)).double().numpy()
    return found


@pytest.mark.parametrize("code", COUNTED)
def test_the_numbers_of_all_bits_are_torchs(code: str) -> None:
    size = dtypes.itemsize(code)
    every = np.arange(256**size, dtype=f"u{size}").view(np.uint8)
    expected = wide_of(code, every)
    np.testing.assert_array_equal(values(code), expected)
    np.testing.assert_array_equal(np.signbit(values(code)[expected == 0]), np.signbit(expected[expected == 0]))
    np.testing.assert_array_equal(as_float64(code, every), expected)


@pytest.mark.parametrize("code", [code for code in dtypes.DTYPES if not dtypes.is_packed(code)])
def test_one_element_is_torchs(code: str) -> None:
    held = made(code, 9, "noise" if code != "BOOL" else "equal", 1)
    whole = torch.from_numpy(held.copy()).view(dtypes.to_torch(code))
    for place in range(9):
        ours, theirs = element(code, held, place), whole[place].item()
        assert (type(ours), repr(ours)) == (type(theirs), repr(theirs))


@pytest.mark.parametrize("kernel", KERNELS)
@given(code=st.sampled_from(COUNTED), numel=SIZES, kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_counts_agree(kernel: Kernel, code: str, numel: int, kind: str, seed: int) -> None:
    words = made(code, numel, kind, seed).view(f"u{dtypes.itemsize(code)}")
    counts = np.arange(256**words.itemsize)
    kernel.count(counts, words)
    expected = np.arange(len(counts)) + np.bincount(words, minlength=len(counts))
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("kernel", KERNELS)
@given(code=st.sampled_from(SUMMED), numel=SIZES, kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_sums_agree(kernel: Kernel, code: str, numel: int, kind: str, seed: int) -> None:
    held = made(code, numel, kind, seed)
    wide, counts = wide_of(code, held), np.zeros(65536, np.int64)
    found = kernel.sums(counts, code, held)
    good = wide[np.isfinite(wide)]
    assert (found.num_zeros, found.num_nan, found.num_inf) == (
        np.count_nonzero(wide == 0),
        np.count_nonzero(np.isnan(wide)),
        np.count_nonzero(np.isinf(wide)),
    )
    assert (found.low, found.high) == ((good.min(), good.max()) if len(good) else (math.inf, -math.inf))
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.clip(good, -np.finfo(np.float32).max, np.finfo(np.float32).max)
        upper = np.concatenate([near, wide[~np.isfinite(wide)]]).astype(np.float32).view(np.uint32) >> 16
    is_finite = np.isfinite(values("BF16"))  # the upper half of a NaN may be that of an infinity
    expected = np.bincount(upper, minlength=65536)
    np.testing.assert_array_equal(counts[is_finite], expected[is_finite])
    assert counts.sum() == numel
    assert found.rows[:, 0].sum() == len(good)
    assert kind == "noise" or math.fsum(found.rows[:, 0] * found.rows[:, 1]) == pytest.approx(
        math.fsum(good), rel=1e-12, abs=1e-9
    )
    assert_spread(found.rows, good, code == "F64" and kind == "noise")


def assert_spread(rows: np.ndarray[Any, Any], good: np.ndarray[Any, Any], is_beyond: bool) -> None:
    """The squares around the mean are those of the whole, however it was cut into pieces."""
    if not len(good) or is_beyond:  # squares of the largest float64 are none
        return
    counts, means, away = rows.T
    mean = (counts * means).sum() / len(good)
    expected = float(np.square(good - good.mean()).sum())
    spread = float(away.sum() + (counts * np.square(means - mean)).sum())
    assert spread == pytest.approx(expected, rel=1e-9, abs=1e-12 * float(np.square(good).sum()))


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    codes=st.tuples(st.sampled_from(sorted(NUMBERS)), st.sampled_from(sorted(NUMBERS))),
    numel=SIZES,
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    seed=st.integers(0, 99),
    is_one=st.booleans(),
)
def test_distances_agree(
    kernel: Kernel, codes: tuple[str, str], numel: int, kinds: tuple[str, str], seed: int, is_one: bool
) -> None:
    codes = (codes[0], codes[0]) if is_one else codes
    one = made(codes[0], numel, kinds[0], seed)
    other = one if is_one else made(codes[1], numel, kinds[1], seed + 1)
    x, y = wide_of(codes[0], one), wide_of(codes[1], other)
    found = kernel.apart(codes, one, other)
    unequal = ~((x == y) | (np.isnan(x) & np.isnan(y)))
    bad = ~(np.isfinite(x) & np.isfinite(y))
    count = np.count_nonzero
    assert codes[0] == codes[1] or found.num_changed == count(unequal)
    assert found.num_unlike == count(unequal & bad)
    assert found.num_nan == (count(np.isnan(x)), count(np.isnan(y)))
    assert found.num_inf == (count(np.isinf(x)), count(np.isinf(y)))
    x, y = np.where(bad, 0, x), np.where(bad, 0, y)
    with np.errstate(over="ignore", invalid="ignore"):
        assert found.largest == max(np.abs(y - x), default=0)
        sides = [(x, x), (y, y), (y - x, y - x), (x, y)]
        if not all(np.isfinite(np.square(side).sum()) for side in (x, y)):
            return
        for column, (a, b) in zip(found.rows.T, sides, strict=True):
            assert column.sum() == pytest.approx(float((a * b).sum()), rel=1e-9, abs=1e-12 * np.abs(a * b).sum())


@given(
    code=st.sampled_from(COUNTED),
    numel=st.integers(0, 3000),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
    parts=st.integers(1, 4),
)
def test_counted_moments_are_exact(code: str, numel: int, kind: str, seed: int, parts: int) -> None:
    """Held against fractions, in any order of tiles."""
    held = made(code, numel, kind, seed)
    size = dtypes.itemsize(code)
    tally = Tally(code)
    for part in range(parts):
        other = Tally(code)
        other.add(np.ascontiguousarray(held.reshape(-1, size)[part::parts]).reshape(-1))
        tally.join(other)
    found = tally.result()
    wide = wide_of(code, held)
    good = [Fraction(x) for x in wide[np.isfinite(wide)].tolist()]
    if not good:
        assert math.isnan(found["mean"])
        return
    assert Fraction(found["mean"]) == Fraction(float(sum(good) / len(good)))
    if len(good) > 1:
        mean = sum(good) / len(good)
        assert found["std"] == math.sqrt(float(sum((x - mean) ** 2 for x in good) / (len(good) - 1)))
    assert found["quantiles"][0.5] == sorted(good)[(len(good) - 1) // 2]


def test_more_elements_than_a_word_holds() -> None:
    """Counts for which integers of 64 bits would overflow."""
    tally = Tally("U16")
    tally._counts[65535], tally._counts[65533], tally.num_elements = 1 << 40, 1 << 40, 1 << 41
    found = tally.result()
    assert (found["mean"], found["std"]) == (65534, pytest.approx(1, rel=1e-12))


def test_sums_beyond_float64_are_no_numbers() -> None:
    found = lazysd.from_torch(torch.tensor([1e308, -1e308] * 9000, dtype=torch.float64)).stats()
    assert (found.max, found.num_inf) == (1e308, 0)
    assert sum(found.quantiles.values()) == pytest.approx(-1e308, rel=1e-6) or len(found.quantiles) == 7


@pytest.mark.skipif(not compiled.KERNEL.is_available(), reason="no compiler when lazysd was installed")
def test_the_compiled_one_refuses_what_does_not_fit() -> None:
    module: Any = compiled.built(compiled.MODULE, compiled.VERSION)
    assert module.PIECE == PIECE
    counts, rows, held = np.zeros(65536, np.int64), np.zeros(8), np.zeros(16, np.uint8)
    for call, arguments, message in (
        (module.count, (counts[:-1], held, 2), "a count for every word"),
        (module.count, (counts, held[:3], 2), "whole ones"),
        (module.count, (counts, held, 4), "1 or 2 bytes"),
        (module.count, (counts, held[1:15], 2), "whole ones"),
        (module.sums, (rows[:2], counts, held, 3), "a row for every piece"),
        (module.sums, (rows, counts[:9], held, 3), "a count for every word"),
        (module.sums, (rows, counts, held[:15], 3), "whole ones"),
        (module.sums, (rows, counts, held, 11), "not known"),
        (module.sums, (rows, counts, held, 0), "bytes are counted"),
        (module.measure, (rows, held, None, 3, held[:12], None, 3), "one size"),
        (module.measure, (rows[:3], held, None, 3, held, None, 3), "a row for every piece"),
        (module.measure, (rows, held, None, 0, held, None, 0), "a number for every byte"),
        (module.measure, (rows, held, None, 3, held, None, -1), "not known"),
    ):
        with pytest.raises(ValueError, match=message):
            call(*arguments)
    readonly = np.zeros(65536, np.int64)
    readonly.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        module.count(readonly, held, 2)

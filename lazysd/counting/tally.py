"""What is known of a tensor's values, however it is cut into tiles: everything follows from counts of bits and sums.

Of types of one or two bytes the bits alone are counted. Their sums are taken in integers, so that mean and standard
deviation are the exact ones, rounded once. Wider types are summed in float64, tile by tile, and added up exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import fsum, inf, isfinite, nan, sqrt
from typing import Any

import numpy as np

from ..dtypes import itemsize
from .chosen import kernel
from .kernels.base import NUM_WORDS
from .values import COUNTED, Array, values

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
NUM_BINS = 40
_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True)
class _Order:
    """The bits of a type by the numbers that they stand for: -inf, finite ones from the smallest, inf, NaN."""

    bits: Array
    numbers: Array  # finite ones
    mantissas: Array  # numbers = mantissas * 2 ** (exponents - num_bits)
    exponents: Array
    num_bits: int
    finite: slice  # of bits
    num_infinite: slice  # of bits, besides the finite ones: from the first to the last infinity
    zeros: Array  # bits of zero


@cache
def _order(code: str) -> _Order:
    numbers = values(code)
    bits = np.argsort(numbers, kind="stable")
    ordered = numbers[bits]
    finite = np.flatnonzero(np.isfinite(ordered))
    infinite = np.flatnonzero(~np.isnan(ordered))
    mantissas, exponents = np.frexp(ordered[finite])
    num_bits = next(n for n in range(1, 17) if (np.ldexp(mantissas, n) % 1 == 0).all())
    return _Order(
        bits,
        ordered[finite],
        np.ldexp(mantissas, num_bits).astype(np.int64),
        exponents,
        num_bits,
        slice(finite[0], finite[-1] + 1),
        slice(infinite[0], infinite[-1] + 1),
        np.flatnonzero(numbers == 0),
    )


class Tally:
    """What is known of some elements of a tensor of type `code`."""

    def __init__(self, code: str) -> None:
        self._code, self._is_counted = code, code in COUNTED
        self._counts: Array = np.zeros(256 if itemsize(code) == 1 else NUM_WORDS, dtype=np.int64)
        self._rows: list[Array] = []
        self._bounds = (inf, -inf)
        self._odd = np.zeros(3, np.int64)  # zeros, NaN, infinite
        self.num_elements = 0

    def add(self, held: Array) -> None:
        """Take in elements, flat bytes."""
        self.num_elements += len(held) // itemsize(self._code)
        if self._is_counted:
            kernel().count(self._counts, held.view(f"u{itemsize(self._code)}"))
            return
        rows, *bounds, zeros, nans, infinite = kernel().sums(self._counts, self._code, held)
        self._rows.append(rows)
        self._bounds = (min(self._bounds[0], bounds[0]), max(self._bounds[1], bounds[1]))
        self._odd += (zeros, nans, infinite)

    def join(self, other: Tally) -> None:
        """Take in what is known of other elements of the same tensor."""
        self._counts += other._counts
        self._rows += other._rows
        self._bounds = (min(self._bounds[0], other._bounds[0]), max(self._bounds[1], other._bounds[1]))
        self._odd += other._odd
        self.num_elements += other.num_elements

    def result(self) -> dict[str, Any]:
        """The fields of Stats, but for dtype and shape."""
        order = _order(self._code if self._is_counted else "BF16")
        by_size = self._counts[order.bits]
        counts = by_size[order.finite]
        there = np.flatnonzero(counts > 0)
        counts, seen = counts[there], order.numbers[there]
        if self._is_counted:
            low, high = (float(seen[0]), float(seen[-1])) if len(seen) else (nan, nan)
            mean, std = _exact_moments(counts, order.mantissas[there], order.exponents[there], order.num_bits)
            infinite = by_size[order.num_infinite].sum() - counts.sum()
            odd = np.array([self._counts[order.zeros].sum(), self.num_elements - counts.sum() - infinite, infinite])
        else:
            low, high = self._bounds if len(seen) else (nan, nan)
            mean, std = moments(np.concatenate(self._rows) if self._rows else np.empty((0, 3)))
            seen, odd = np.clip(seen, low, high), self._odd
        return {
            "min": low,
            "max": high,
            "mean": mean,
            "std": std,
            "absmax": max(abs(low), abs(high)),
            "num_elements": self.num_elements,
            **dict(zip(("num_zeros", "num_nan", "num_inf"), odd.tolist(), strict=True)),
            "quantiles": _quantiles(seen, counts),
            "bin_counts": _histogram(seen, counts, low, high),
            "exact": self._is_counted,
        }


def _exact_moments(counts: Array, mantissas: Array, exponents: Array, num_bits: int) -> tuple[float, float]:
    """Mean and standard deviation of integers times powers of two, each rounded once."""
    total = int(counts.sum())
    if not total:
        return nan, nan
    if total > _MAX_INT64 >> 2 * num_bits:
        counts = counts.astype(object)
    starts = np.flatnonzero(np.diff(exponents, prepend=exponents[0] - 1))
    least = int(exponents.min())
    first = second = 0  # sums of numbers and of their squares, in units of 2 ** unit and 2 ** (2 * unit)
    unit = least - num_bits
    sums, squares = (np.add.reduceat(counts * mantissas**power, starts) for power in (1, 2))
    for exponent, one, two in zip(exponents[starts], sums, squares, strict=True):
        shift = int(exponent) - least
        first += int(one) << shift
        second += int(two) << 2 * shift
    mean = _ratio(first, total, unit)
    return mean, sqrt(_ratio(total * second - first**2, total * (total - 1), 2 * unit)) if total > 1 else nan


def _ratio(above: int, below: int, exponent: int) -> float:
    """above / below * 2 ** exponent."""
    return (above << max(exponent, 0)) / (below << max(-exponent, 0))


def moments(rows: Array) -> tuple[float, float]:
    """Mean and standard deviation of rows of (count, mean, squares around it); the same bits in any order of rows."""
    total = int(rows[:, 0].sum())
    if not total:
        return nan, nan
    counts, means, squares = rows.T
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            mean = fsum(counts * means) / total
            spread = fsum(squares) + fsum(counts * (means - mean) ** 2)
    except (OverflowError, ValueError):  # beyond what float64 holds
        return nan, nan
    return mean, sqrt(spread / (total - 1)) if total > 1 else nan


def _quantiles(seen: Array, counts: Array) -> dict[float, float]:
    ranks = np.cumsum(counts)
    if not len(ranks):
        return {}
    places = np.searchsorted(ranks, [int(at * (int(ranks[-1]) - 1)) for at in QUANTILES], side="right")
    return dict(zip(QUANTILES, seen[places].tolist(), strict=True))


def _histogram(seen: Array, counts: Array, low: float, high: float) -> tuple[int, ...]:
    if not len(seen) or not isfinite(high - low):
        return ()
    if low == high:
        return (int(counts.sum()),)
    inner = np.searchsorted(seen, np.linspace(low, high, NUM_BINS + 1)[1:-1], side="left")
    until = np.concatenate(([0], np.cumsum(counts)))[[0, *inner, len(seen)]]
    return tuple(np.diff(until).tolist())

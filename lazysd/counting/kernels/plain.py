"""numpy's own: always there, and what the others are held against."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numpy as np

from ...dtypes import itemsize
from ..values import Array, as_float64
from .base import NUM_WORDS, Apart, Kernel, Sums

CHUNK = 1 << 16  # elements at a time: their temporaries stay in a core's cache


class Plain(Kernel):
    """Counts and sums by numpy."""

    name = "plain"
    rank = 90

    def is_available(self) -> bool:
        return True

    def count(self, counts: Array, words: Array) -> None:
        for start in range(0, len(words), CHUNK):
            counts += np.bincount(words[start : start + CHUNK], minlength=len(counts))

    def sums(self, counts: Array, code: str, held: Array) -> Sums:
        rows, low, high, odd = [], inf, -inf, np.zeros(3, np.int64)
        for chunk in _chunks(held, itemsize(code)):
            wide = as_float64(code, chunk)
            counts += np.bincount(_upper(wide), minlength=NUM_WORDS)
            odd += (
                len(wide) - np.count_nonzero(wide),
                np.count_nonzero(np.isnan(wide)),
                np.count_nonzero(np.isinf(wide)),
            )
            wide = wide[np.isfinite(wide)]
            if not len(wide):
                continue
            low, high = min(low, float(wide.min())), max(high, float(wide.max()))
            with np.errstate(over="ignore", invalid="ignore"):
                mean = float(wide.sum()) / len(wide)
                rows.append((len(wide), mean, float(np.square(wide - mean).sum())))
        return Sums(np.array(rows).reshape(-1, 3), low, high, *map(int, odd))

    def apart(self, codes: tuple[str, str], one: Array, other: Array) -> Apart:
        rows, largest, odd = [], 0.0, np.zeros(6, np.int64)
        sides = (_chunks(held, itemsize(code)) for code, held in zip(codes, (one, other), strict=True))
        for pair in zip(*sides, strict=True):
            x, y = (as_float64(code, chunk) for code, chunk in zip(codes, pair, strict=True))
            other_value = ~((x == y) | (np.isnan(x) & np.isnan(y)))
            bad = ~(np.isfinite(x) & np.isfinite(y))
            found = (other_value, *map(np.isnan, (x, y)), *map(np.isinf, (x, y)), bad & other_value)
            odd += [np.count_nonzero(mask) for mask in found]
            x[bad] = y[bad] = 0
            with np.errstate(over="ignore", invalid="ignore"):
                delta = y - x
                largest = max(largest, float(np.abs(delta).max()))
                rows.append([float((a * b).sum()) for a, b in ((x, x), (y, y), (delta, delta), (x, y))])
        changed, *counts, unlike = map(int, odd)
        return Apart(
            np.array(rows).reshape(-1, 4), largest, changed, (counts[0], counts[1]), (counts[2], counts[3]), unlike
        )


def _chunks(held: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(held), CHUNK * size):
        yield held[start : start + CHUNK * size]


def _upper(wide: Array) -> Array:
    most = float(np.finfo(np.float32).max)
    is_beyond = np.isfinite(wide) & (np.abs(wide) > most)
    with np.errstate(invalid="ignore"):  # a NaN that signals
        near: Array = np.where(is_beyond, np.copysign(most, wide), wide).astype(np.float32)
    return near.view(np.uint32) >> np.uint32(16)


KERNEL = Plain()

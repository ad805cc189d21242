"""The compiled kernel, `_count.c`: there where a compiler was when the package was installed."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...compiled import built
from ...dtypes import itemsize
from ..values import Array, values
from .base import Apart, Kernel, Sums

MODULE = "lazysd.counting._count"
VERSION = 1  # of the C code's interface; a file that an older checkout has left behind is not used
_KINDS = ("", "BF16", "F16", "F32", "F64", "I16", "U16", "I32", "U32", "I64", "U64")  # 0: a table of 256


class Compiled(Kernel):
    """Counts and sums by C code of our own."""

    name = "compiled"
    rank = 10

    def is_available(self) -> bool:
        return built(MODULE, VERSION) is not None

    def count(self, counts: Array, words: Array) -> None:
        built(MODULE, VERSION).count(counts, words, words.itemsize)

    def sums(self, counts: Array, code: str, held: Array) -> Sums:
        rows = _rows(len(held) // itemsize(code), 3)
        return Sums(rows, *built(MODULE, VERSION).sums(rows, counts, held, _KINDS.index(code)))

    def apart(self, codes: tuple[str, str], one: Array, other: Array) -> Apart:
        rows = _rows(len(one) // itemsize(codes[0]), 4)
        sides = (x for code, held in zip(codes, (one, other), strict=True) for x in (held, *_kind(code)))
        largest, changed, *odd, unlike = built(MODULE, VERSION).measure(rows, *sides)
        return Apart(rows, largest, changed, (odd[0], odd[1]), (odd[2], odd[3]), unlike)


def _rows(numel: int, width: int) -> Array:
    return np.empty((-(-numel // built(MODULE, VERSION).PIECE), width))


def _kind(code: str) -> tuple[Any, int]:
    """(table, kind) as the C code takes them."""
    return (None, _KINDS.index(code)) if code in _KINDS else (values(code), 0)


KERNEL = Compiled()

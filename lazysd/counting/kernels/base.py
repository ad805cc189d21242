"""What a kernel is, and what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from ..values import Array

NUM_WORDS = 65536


class Sums(NamedTuple):
    """What a stretch of elements adds up to. All but the counts are over those that are finite."""

    rows: Array  # (pieces, 3) float64: how many there are, their mean, the sum of squares of what is left of them
    low: float  # infinite where there are none
    high: float
    num_zeros: int
    num_nan: int
    num_inf: int


class Apart(NamedTuple):
    """How far two stretches of elements lie apart. All but the counts are over pairs that are finite on both sides."""

    rows: Array  # (pieces, 4) float64: squares of the first, of the second, of their difference; products of both
    largest: float  # difference
    num_changed: int  # pairs of other values, two NaNs being the same
    num_nan: tuple[int, int]
    num_inf: tuple[int, int]
    num_unlike: int  # pairs of other values that are not finite on some side


class Kernel(ABC):
    """A way to count and to sum up elements. A member of this room has a `KERNEL`.

    All count alike; sums may differ in their last digits. They work on the calling thread alone, and let others run
    meanwhile. Elements are flat bytes whose memory is aligned to their size.
    """

    name: ClassVar[str]
    rank: ClassVar[int]  # the first that is available does the work

    @abstractmethod
    def is_available(self) -> bool:
        """Whether it can be used here and now. Cheap."""

    @abstractmethod
    def count(self, counts: Array, words: Array) -> None:
        """Add to `counts` (256 or 65,536 of int64) how often each word of uint8 or uint16 stands in `words`."""

    @abstractmethod
    def sums(self, counts: Array, code: str, held: Array) -> Sums:
        """Of elements of four and eight bytes.

        Adds to `counts` (65,536 of int64) how often the upper half of an element stands there, taken as float32; the
        largest float32 stands for finite elements beyond it. What is not finite is counted where no finite one is.
        """

    @abstractmethod
    def apart(self, codes: tuple[str, str], one: Array, other: Array) -> Apart:
        """Of elements of any types, as many of one as of the other. Of one type, `num_changed` may be left at 0."""

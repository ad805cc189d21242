"""What a kernel is asked for, and what it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ... import dtypes
from ..codes import one_nan, scale_values, scales_as_float

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Request:
    """(values of codes - zeros) * scales, in float32: some rows and columns of a weight (..., R, C).

    Operands are dense, and hold what the rows and columns wanted need and nothing else (`blocks.blocks_of`).
    """

    codes: torch.Tensor  # (..., R, C) of 8 bits, or (..., R, words of `per_word` codes of 4 bits, low bits first)
    values: tuple[float, ...] | str  # of the sixteen codes, or the 8-bit dtype that codes are
    per_word: int  # 1 where codes are 8 bits
    scale: torch.Tensor  # (..., blocks of rows, blocks of columns)
    rows: range  # of the weight
    columns: range
    block: tuple[int, int]  # the rows and columns that share a scale; of 4 bits, one row and an even number
    total: torch.Tensor | None = None  # one float32 that scales are multiplied by, or divided
    divides: bool = False
    zeros: torch.Tensor | None = None  # float32, one a scale
    zero: float = 0.0  # without `zeros`, for all

    @property
    def is_exponents(self) -> bool:
        """Whether scales are powers of two up to 2 ** 128, which is no float32; zero times it is zero, as by ldexp."""
        is_alone = self.total is None and self.zeros is None and not self.zero
        return is_alone and self.per_word == 2 and dtypes.from_torch(self.scale.dtype) == "U8"

    def at(self, *lead: int) -> Request:
        """The request for one of the matrices."""
        zeros = None if self.zeros is None else self.zeros[lead]
        return replace(self, codes=self.codes[lead], scale=self.scale[lead], zeros=zeros)

    def some(self, rows: slice) -> Request:
        """The request for some rows of a matrix, each of which has scales of its own."""
        zeros = None if self.zeros is None else self.zeros[rows]
        return replace(self, codes=self.codes[rows], scale=self.scale[rows], zeros=zeros, rows=self.rows[rows])

    def factors(self) -> torch.Tensor:
        """What values are multiplied by, float32, of the shape of `scale`."""
        return self.with_total(scales_as_float(self.scale))

    def table(self, scale_code: str) -> torch.Tensor:
        """The same of each of the 256 values that 8-bit scales have."""
        return self.with_total(scale_values(scale_code, self.scale.device))

    def with_total(self, factors: torch.Tensor) -> torch.Tensor:
        if self.total is None:
            return factors
        total = one_nan(self.total)
        return factors / total if self.divides else factors * total


class Kernel(ABC):
    """A way to decode. A member of this room has a `KERNEL`. All make the same bits, except of NaNs by NaNs."""

    name: ClassVar[str]
    rank: ClassVar[int]  # the first that takes a target does the work

    @abstractmethod
    def takes(self, target: torch.Tensor) -> bool:
        """Whether it can be used here and now, for a target of this dtype on this device. Cheap."""

    @abstractmethod
    def decode(self, target: torch.Tensor, wanted: Request) -> None:
        """Write what is wanted into a target of its shape and any strides, rounded once, as torch rounds.

        Works on the calling thread alone.
        """

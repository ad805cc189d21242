"""Integers packed into 32-bit words, and rows picked by an index that is data itself (GPTQ's act-order)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import FormatError
from ..graph.base import Inputs
from ..graph.boxes import Box, Dims, full_box
from ..graph.compute import Computed

if TYPE_CHECKING:
    import torch

    from ..graph.node import Node


@dataclass(frozen=True, slots=True)
class Unpack(Computed):
    """Unsigned integers of `bits` bits, packed without gaps along `axis` of I32 words, low bits first; U8.

    `plus` is added to each, modulo 2 ** bits. `order` says where in its word element j of a word stands.

    Source: AutoGPTQ and GPTQModel (qweight, qzeros), AutoAWQ (order), compressed-tensors (weight_packed).
    """

    bits: int
    axis: int  # from the last: -1 or -2
    size: int  # elements along `axis`; the last word may hold more
    plus: int = 0
    order: tuple[int, ...] = ()

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        (words,) = inputs
        num_words = -(-self.size * self.bits // 32)
        if words.code != "I32" or words.ndim < 2 or words.dims[self.axis] != num_words:
            raise ValueError(
                f"{self.size} integers of {self.bits} bits need I32 with {num_words} words along axis {self.axis}, got "
                f"{words.code}{list(words.dims)}"
            )
        dims = list(words.dims)
        dims[self.axis] = self.size
        return tuple(dims), "U8"

    def _places(self, axis: range) -> list[int]:
        """Where in the stream of integers the elements of an axis stand."""
        if not self.order:
            return list(axis)
        n = len(self.order)
        return [at // n * n + self.order[at % n] for at in axis]

    def _words(self, axis: range) -> range:
        """The words that hold them."""
        if self.order:
            n = len(self.order)
            return range(axis[0] // n, axis[-1] // n + 1)
        return range(axis[0] * self.bits // 32, (axis[-1] * self.bits + self.bits - 1) // 32 + 1)

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        wanted = list(box)
        wanted[self.axis] = self._words(box[self.axis])
        return [(node.inputs[0], tuple(wanted))]

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        import torch

        words, axis = operands[0], box[self.axis]
        start = self._words(axis).start
        first = [place * self.bits - start * 32 for place in self._places(axis)]  # the bit each element begins at
        at = torch.tensor(first, dtype=torch.int32, device=words.device)
        shape = (-1, 1) if self.axis == -2 else (1, -1)
        low = words.index_select(self.axis, at >> 5)
        shift, mask = (at & 31).view(shape), (1 << self.bits) - 1
        values = (low >> shift).bitwise_and_(mask)  # the sign is shifted in from above, and masked away
        if 32 % self.bits:  # some begin in one word and end in the next
            last = words.shape[self.axis] - 1
            high = words.index_select(self.axis, ((at >> 5) + 1).clamp_(max=last))
            taken = (32 - shift).clamp_(max=self.bits)  # bits that the first word holds
            keep = (torch.ones_like(taken) << taken) - 1
            crossing = (high << (taken & 31)).bitwise_and_(mask)
            values = torch.where(taken < self.bits, (values & keep) | crossing, values)
        if self.plus:
            values.add_(self.plus).bitwise_and_(mask)
        target.copy_(values)

    def describe(self, node: Node) -> str:
        return f"{self.bits}-bit integers unpacked along axis {self.axis}"


@dataclass(frozen=True, slots=True)
class PickRows(Computed):
    """Row index[k] of a table (G, R), for each k: (C, R). Which rows that are is known only once the index is read."""

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        table, index = inputs
        if table.ndim != 2 or index.ndim != 1 or index.code not in ("I32", "I64"):
            raise ValueError(
                f"rows of {table.code}{list(table.dims)} cannot be picked by {index.code}{list(index.dims)}"
            )
        return (index.dims[0], table.dims[1]), table.code

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        table, index = node.inputs
        return [(table, (full_box(table.dims)[0], box[1])), (index, (box[0],))]

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        table, index = operands
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= table.shape[0]:
            raise FormatError(
                f"a group index runs from {low} to {high}, but there are {table.shape[0]} groups of scales; "
                "is g_idx of another weight?"
            )
        target.copy_(table.index_select(0, index))

    def describe(self, node: Node) -> str:
        return f"rows of a table of {node.inputs[0].dims[0]}"

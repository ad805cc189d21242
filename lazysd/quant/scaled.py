"""Codes times scales in blocks: what FP8, INT8 and unpacked integer weights are decoded by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from .. import dtypes
from ..graph.base import Inputs
from ..graph.boxes import Box, Dims
from ..graph.compute import Computed
from .codes import byte_values, lookup, scales_as_float
from .scratch import CHUNK, buffer, put

if TYPE_CHECKING:
    import torch

    from ..graph.node import Node

EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8")


def block_counts(dims: Dims, block: tuple[int, int]) -> Dims:
    """Shape of the scales of a block-quantised tensor: the last two axes in blocks, the last block may be short."""
    return (*dims[:-2], -(-dims[-2] // block[0]), -(-dims[-1] // block[1]))


def blocks_by_shape(codes: Dims, scale: Dims, stated: list[tuple[int, int]]) -> tuple[tuple[int, int], Dims]:
    """(rows and columns of a block, shape of the scales as one for each block), as the shape of the scales tells.

    One scale a row, one a stated block, one for a matrix, and in a fused group one for each expert, or for gate and up
    of it. ValueError where it is none of these.
    """
    *lead, rows, columns = codes
    if scale in ((*lead, rows, 1), (*lead, rows)):
        return (1, max(columns, 1)), (*lead, rows, 1)
    for block in stated:
        if scale == block_counts(codes, block):
            return block, scale
    per = prod(scale) // max(prod(lead), 1)
    if per in (1, 2) and not rows % per and prod(lead) * per == prod(scale):
        flat = tuple(size for size in scale if size != 1)
        if flat == tuple(size for size in (*lead, per) if size != 1) and (lead or per == 1):
            return (max(rows // per, 1), max(columns, 1)), (*lead, per, 1)
    shown = ", ".join(f"{rows} x {columns}" for rows, columns in stated) or "none"
    raise ValueError(
        f"scales {list(scale)} are neither one for the tensor, nor one a row of codes {list(codes)}, nor one a block "
        f"that config.json states ({shown})"
    )


def blocks_of(axis: range, size: int) -> range:
    """The blocks of `size` indices that an axis of a box touches; every one of them where it steps by whole blocks."""
    if not axis:
        return range(0)
    if axis.step > size and axis.step % size == 0:
        return range(axis[0] // size, axis[-1] // size + 1, axis.step // size)
    return range(axis[0] // size, axis[-1] // size + 1)


def spread(scales: torch.Tensor, dim: int, axis: range, size: int) -> torch.Tensor:
    """Scales of the blocks `blocks_of(axis, size)` along `dim`, one an index of `axis`, or one for all."""
    import torch

    blocks = blocks_of(axis, size)
    if len(blocks) == 1:
        return scales
    which = torch.tensor([(at // size - blocks.start) // blocks.step for at in axis], device=scales.device)
    return scales.index_select(dim % scales.dim(), which)


@dataclass(frozen=True, slots=True)
class Dequantize(Computed):
    """Codes (..., R, C) times scales (..., ceil(R/rows), ceil(C/columns)), in float32, rounded once to `code`.

    A zero point is taken from the codes first: `zero`, or a third input in the same blocks as the scales.

    Source: DeepSeek-V3 / Qwen3 FP8 checkpoints (`weight`, `weight_scale_inv`, `weight_block_size` in config.json).
    """

    temporary_nbytes: ClassVar[int] = 12  # indices into the table, values, a factor for each
    block: tuple[int, int]
    code: str
    zero: int = 0

    @property
    def align(self) -> int:  # type: ignore[override]
        return self.block[0]

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        weight, *others = inputs
        for other in others:
            if weight.ndim < 2 or other.dims != block_counts(weight.dims, self.block):
                expected = list(block_counts(weight.dims, self.block)) if weight.ndim >= 2 else "a matrix"
                raise ValueError(
                    f"weight {list(weight.dims)} in blocks of {list(self.block)} needs scales {expected}, "
                    f"got {list(other.dims)}"
                )
        if weight.code not in EIGHT_BITS:
            raise ValueError(f"codes are {weight.code}, expected one of {', '.join(EIGHT_BITS)}")
        return weight.dims, self.code

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        weight, *others = node.inputs
        blocks = tuple(blocks_of(axis, size) for axis, size in zip(box[-2:], self.block, strict=True))
        return [(weight, box), *((other, box[:-2] + blocks) for other in others)]

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        weight, scale, *zeros = operands
        factors = scales_as_float(scale)
        offsets = lookup(byte_values(dtypes.from_torch(zeros[0].dtype), weight.device), zeros[0]) if zeros else None
        for lead in product(*map(range, weight.shape[:-2])):
            for rows, block in self._chunks(box):
                shares = [None if each is None else each[lead][block] for each in (factors, offsets)]
                self._decode(target[lead][rows], weight[lead][rows], shares[0], shares[1], box[-1])

    def _chunks(self, box: Box) -> Iterator[tuple[slice, slice]]:
        """(rows of a tile, their blocks), cut so that the values fit a cache and blocks are one, or one a row."""
        rows, size = box[-2], self.block[0]
        blocks, most = blocks_of(rows, size), max(1, CHUNK // max(len(box[-1]), 1))
        start = 0
        while start < len(rows):
            if size == 1:
                stop = min(start + most, len(rows))
                yield slice(start, stop), slice(start, stop)  # blocks_of() steps with the rows
            else:
                block = rows[start] // size
                stop = min(start + most, len(rows), start + -(-((block + 1) * size - rows[start]) // rows.step))
                at = (block - blocks.start) // blocks.step
                yield slice(start, stop), slice(at, at + 1)
            start = stop

    def _decode(
        self, target: torch.Tensor, codes: torch.Tensor, factors: Any, offsets: torch.Tensor | None, axis: range
    ) -> None:
        """Some rows, whose scales (rows, blocks) are one row each, or one for all."""
        import torch

        numel, device = codes.numel(), codes.device
        index = buffer("index", numel, torch.int32, device)
        index.view(codes.shape).copy_(codes.view(torch.uint8))
        values = buffer("values", numel, torch.float32, device)
        torch.index_select(byte_values(dtypes.from_torch(codes.dtype), device), 0, index, out=values)
        values = values.view(codes.shape)
        if offsets is not None:
            for part, numbers in self._by_blocks(values, offsets, axis):
                part.sub_(numbers)
        elif self.zero:
            values.sub_(self.zero)
        for part, numbers in self._by_blocks(values, factors, axis):
            part.mul_(numbers)
        put(target, values)

    def _by_blocks(
        self, values: torch.Tensor, numbers: torch.Tensor, axis: range
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Parts of values (rows, columns), and the numbers (rows or 1, blocks) of their blocks to broadcast to them."""
        size, count = self.block[1], len(axis)
        if axis.step != 1 or numbers.shape[1] == 1:
            yield values, spread(numbers, -1, axis, size)
            return
        head = min(-axis[0] % size, count)  # what is left of a block that began before the slice
        first = 1 if head else 0
        whole = (count - head) // size
        if head:
            yield values[:, :head], numbers[:, :1]
        if whole:
            end = head + whole * size
            yield values[:, head:end].unflatten(1, (whole, size)), numbers[:, first : first + whole].unsqueeze(-1)
        if head + whole * size < count:
            yield values[:, head + whole * size :], numbers[:, first + whole : first + whole + 1]

    def lossy(self, node: Node) -> str | None:
        return f"dequantise {dtypes.DTYPES[node.inputs[0].code].label} -> {dtypes.DTYPES[self.code].label}"

    def describe(self, node: Node) -> str:
        return f"dequantised in blocks of {self.block[0]} x {self.block[1]}"

"""Codes times scales in blocks: what FP8, INT8 and unpacked integer weights are decoded by."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from .. import dtypes
from ..graph.base import Inputs
from ..graph.boxes import Box, Dims
from ..graph.compute import Computed
from ..graph.rewrite import reshape
from .base import longer, repeated
from .blocks import blocks_of
from .codes import byte_values, lookup
from .decoding import decode
from .kernels.base import Request

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
    if num := numbers(codes, scale):
        return (max(rows // num, 1), max(columns, 1)), (*lead, num, 1)
    shown = ", ".join(f"{rows} x {columns}" for rows, columns in stated) or "none"
    raise ValueError(
        f"scales {list(scale)} are neither one for the tensor, nor one a row of codes {list(codes)}, nor one a block "
        f"that config.json states ({shown})"
    )


def numbers(codes: Dims, scale: Dims) -> int:
    """How many numbers each matrix of codes has: 1, or 2 for halves of its rows; 0 where scales are no such thing."""
    lead, rows = codes[:-2], codes[-2]
    for num in (1, 2) if lead else ():
        if longer(scale) == longer((*lead, num)) and not rows % num:
            return num
    return int(prod(scale) == 1)


def spread_out(scale: Node, dims: Dims) -> Node:
    """Scales in the shape that blocks_by_shape() says, one for all matrices repeated."""
    if scale.numel() == 1 and prod(dims) > 1:
        scale = repeated(reshape(scale, (1,)), 0, prod(dims))
    return reshape(scale, dims)


@dataclass(frozen=True, slots=True)
class Dequantize(Computed):
    """Codes (..., R, C) times scales (..., ceil(R/rows), ceil(C/columns)), in float32, rounded once to `code`.

    A zero point is taken from the codes first: `zero`, or a third input in the same blocks as the scales.

    Source: DeepSeek-V3 / Qwen3 FP8 checkpoints (`weight`, `weight_scale_inv`, `weight_block_size` in config.json).
    """

    temporary_nbytes: ClassVar[int] = 2  # kernels decode some rows at a time; this is their share of a tile
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
        kinds = [dtypes.from_torch(part.dtype) for part in (weight, *zeros)]
        numbers = lookup(byte_values(kinds[1], weight.device), zeros[0]) if zeros else None
        wanted = Request(weight, kinds[0], 1, scale, box[-2], box[-1], self.block, zeros=numbers, zero=self.zero)
        decode(target, wanted)

    def lossy(self, node: Node) -> str | None:
        return f"dequantise {dtypes.DTYPES[node.inputs[0].code].label} -> {dtypes.DTYPES[self.code].label}"

    def describe(self, node: Node) -> str:
        return f"dequantised in blocks of {self.block[0]} x {self.block[1]}"

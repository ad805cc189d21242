"""Block quantisation to FP8: a weight becomes codes and one scale a block, the way transformers writes them.

Source: transformers 5.23, integrations/finegrained_fp8.py (`Fp8Quantize`); blocks at the edge may be short here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import dtypes
from ..graph.base import Inputs
from ..graph.boxes import Box, Dims
from ..graph.compute import Computed, put
from .codes import E4M3_MAX
from .scaled import block_counts

if TYPE_CHECKING:
    import torch

    from ..graph.node import Node


@dataclass(frozen=True, slots=True)
class _Blockwise(Computed):
    """An op over whole blocks of (rows, columns) of the last two axes of one weight."""

    block: tuple[int, int]
    scale_code: str  # "F32", or "F8_E8M0": scales rounded up to powers of two (ue8m0)

    def _scales(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(what to multiply each block by, its inverse as stored), both (…, blocks, blocks), of whole blocks."""
        import torch

        rows, columns = self.block
        pad = (0, -weight.shape[-1] % columns, 0, -weight.shape[-2] % rows)
        whole = torch.nn.functional.pad(weight.float(), pad)
        split = whole.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))  # (…, blocks, rows, blocks, columns)
        largest = split.abs().amax(dim=(-3, -1))
        scales = torch.where(largest > 0, E4M3_MAX / torch.where(largest > 0, largest, 1.0), 1.0)
        scales = scales.clamp(max=torch.finfo(torch.float32).max)  # no infinity in tiny blocks: 0 has to stay 0
        inverse = 1.0 / scales
        if self.scale_code == "F8_E8M0":
            inverse = torch.exp2(torch.ceil(torch.log2(inverse.clamp(min=torch.finfo(torch.float32).tiny))))
            inverse = inverse.to(torch.float8_e8m0fnu)
            scales = 1.0 / inverse.float()
        return scales, inverse


@dataclass(frozen=True, slots=True)
class QuantizeScale(_Blockwise):
    """The inverse scales of a weight (…, R, C): (…, ceil(R/rows), ceil(C/columns)), to multiply its codes with."""

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        if inputs[0].ndim < 2:
            raise ValueError(f"cannot quantise {list(inputs[0].dims)} in blocks; it needs at least two axes")
        return block_counts(inputs[0].dims, self.block), self.scale_code

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        weight = node.inputs[0]
        parts = tuple(
            range(axis[0] * size, min((axis[-1] + 1) * size, extent))
            for axis, size, extent in zip(box[-2:], self.block, weight.dims[-2:], strict=True)
        )
        return [(weight, box[:-2] + parts)]

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        inverse = self._scales(operands[0])[1]
        rows, columns = (slice(None, None, axis.step) for axis in box[-2:])
        target.copy_(inverse[..., rows, columns])

    def describe(self, node: Node) -> str:
        return f"scales of blocks of {self.block[0]} x {self.block[1]}"


@dataclass(frozen=True, slots=True)
class QuantizeWeight(_Blockwise):
    """The FP8 codes (float8_e4m3fn) of a weight, each block scaled so that its largest value is the largest code."""

    @property
    def align(self) -> int:  # type: ignore[override]
        return self.block[0]

    @property
    def align_columns(self) -> int:  # type: ignore[override]
        return self.block[1]

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        if inputs[0].ndim < 2:
            raise ValueError(f"cannot quantise {list(inputs[0].dims)} in blocks; it needs at least two axes")
        return inputs[0].dims, "F8_E4M3"

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        weight = node.inputs[0]
        parts = tuple(
            range(axis[0] // size * size, min((axis[-1] // size + 1) * size, extent))
            for axis, size, extent in zip(box[-2:], self.block, weight.dims[-2:], strict=True)
        )
        return [(weight, box[:-2] + parts)]

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        (weight,) = operands
        factors, picked = self._scales(weight)[0], []
        for dim, axis, size in zip((-2, -1), box[-2:], self.block, strict=True):
            factors = factors.repeat_interleave(size, dim)
            factors = factors.narrow(dim, 0, weight.shape[dim])
            first = axis[0] % size
            picked.append(slice(first, first + axis[-1] - axis[0] + 1, axis.step))
        rows, columns = picked
        codes = (weight.float() * factors)[..., rows, columns].clamp(-E4M3_MAX, E4M3_MAX)
        put(target, codes)

    def lossy(self, node: Node) -> str | None:
        return f"quantise {dtypes.DTYPES[node.inputs[0].code].label} -> f8e4m3"

    def describe(self, node: Node) -> str:
        return f"quantised in blocks of {self.block[0]} x {self.block[1]}"

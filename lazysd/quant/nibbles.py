"""Two values a byte: FP4 and INT4 codes with one scale a group, decoded by looking up whole bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from .. import dtypes
from ..graph.base import Inputs
from ..graph.boxes import Box, Dims
from ..graph.compute import Computed
from .blocks import blocks_of
from .codes import byte_values, lookup
from .decoding import decode
from .kernels.base import Request

if TYPE_CHECKING:
    import torch

    from ..graph.node import Node


@dataclass(frozen=True, slots=True)
class DecodeNibbles(Computed):
    """Codes (..., R, W) of `per_word` 4-bit values each, low bits first, times scales (..., R, C/group).

    In float32, rounded once to `code`. C is W * per_word. A third input is the tensor's global scale, one element or
    one for each index of the first axis: the scale is multiplied by it, or divided if `divides`. Or it is zero points
    to take from the values, U8 of the shape of the scales, if `has_zeros`.

    Source: OCP Microscaling Formats 1.0 (MXFP4); ModelOpt and compressed-tensors (NVFP4); compressed-tensors (INT4).
    """

    temporary_nbytes: ClassVar[int] = 2  # kernels decode some rows at a time; this is their share of a tile
    values: tuple[float, ...]  # of the sixteen codes
    per_word: int  # 2 for U8, 8 for I32
    group: int
    code: str
    divides: bool = False
    has_zeros: bool = False

    @property
    def align(self) -> int:  # type: ignore[override]
        return self.group

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        codes, scale, *rest = inputs
        columns = codes.dims[-1] * self.per_word if codes.ndim else 0
        expected = (*codes.dims[:-1], -(-columns // self.group))
        if codes.ndim < 2 or scale.dims != expected:
            raise ValueError(
                f"codes {list(codes.dims)} of {self.per_word} values each in groups of {self.group} need scales "
                f"{list(expected)}, got {list(scale.dims)}"
            )
        dims = (*codes.dims[:-1], columns)
        if self.has_zeros and (rest[0].dims, rest[0].code) != (scale.dims, "U8"):
            raise ValueError(f"zero points {rest[0].code}{list(rest[0].dims)} do not fit scales {list(scale.dims)}")
        if rest and not self.has_zeros and rest[0].numel() not in (1, dims[0] if len(dims) > 2 else 1):
            raise ValueError(
                f"the global scale has {rest[0].numel()} elements, expected 1 or one for each of {dims[0]}"
            )
        return dims, self.code

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        codes, scale, *rest = node.inputs
        words = (*box[:-1], blocks_of(box[-1], self.per_word))
        groups = (*box[:-1], blocks_of(box[-1], self.group))
        found = [(codes, words), (scale, groups)]
        if self.has_zeros:
            return [*found, (rest[0], groups)]
        for total in rest:
            first = (box[0],) if total.numel() > 1 else (range(1),)
            found.append((total, (*first, *(range(1) for _ in total.dims[1:]))[: total.ndim]))
        return found

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        codes, scale, *rest = operands
        total = rest[0].float().reshape(-1) if rest and not self.has_zeros else None
        zeros = lookup(byte_values("U8", codes.device), rest[0]) if self.has_zeros else None
        whole = Request(
            codes, self.values, self.per_word, scale, box[-2], box[-1], (1, self.group), total, self.divides, zeros
        )
        if total is None or total.numel() == 1:
            decode(target, whole)
            return
        for at in range(total.numel()):  # one tensor with one global scale each
            decode(target[at], replace(whole.at(at), total=total[at : at + 1]))

    def lossy(self, node: Node) -> str | None:
        return f"dequantise 4 bits -> {dtypes.DTYPES[self.code].label}"

    def describe(self, node: Node) -> str:
        return f"decoded from 4 bits in groups of {self.group}"

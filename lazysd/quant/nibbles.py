"""Two values a byte: FP4 and INT4 codes with one scale a group, decoded by looking up whole bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from .. import dtypes
from ..graph.base import Inputs
from ..graph.boxes import Box, Dims
from ..graph.compute import Computed, put
from .codes import exponents, pair_values, scale_values, scales_as_float
from .scaled import blocks_of, spread

if TYPE_CHECKING:
    import torch

    from ..graph.node import Node

EIGHT_BIT_SCALES = ("U8", "F8_E4M3", "F8_E8M0")
_TABLE_FROM = 1 << 16  # elements of a tile from which a table of every (scale, byte) costs less than it saves
_PAIRS = {"BF16": "int32", "F16": "int32", "F32": "int64"}  # two values, as one integer that a lookup can move


@dataclass(frozen=True, slots=True)
class DecodeNibbles(Computed):
    """Codes (..., R, W) of `per_word` 4-bit values each, low bits first, times scales (..., R, C/group).

    In float32, rounded once to `code`. C is W * per_word. A third input is the tensor's global scale, one element or
    one for each index of the first axis: the scale is multiplied by it, or divided if `divides`.

    Source: OCP Microscaling Formats 1.0 (MXFP4); ModelOpt and compressed-tensors (NVFP4); compressed-tensors (INT4).
    """

    temporary_nbytes: ClassVar[int] = 12  # indices into the table, values, a factor for each
    values: tuple[float, ...]  # of the sixteen codes
    per_word: int  # 2 for U8, 8 for I32
    group: int
    code: str
    divides: bool = False

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
        if rest and rest[0].numel() not in (1, dims[0] if len(dims) > 2 else 1):
            raise ValueError(
                f"the global scale has {rest[0].numel()} elements, expected 1 or one for each of {dims[0]}"
            )
        return dims, self.code

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        codes, scale, *rest = node.inputs
        words = (*box[:-1], blocks_of(box[-1], self.per_word))
        groups = (*box[:-1], blocks_of(box[-1], self.group))
        found = [(codes, words), (scale, groups)]
        for total in rest:
            first = (box[0],) if total.numel() > 1 else (range(1),)
            found.append((total, (*first, *(range(1) for _ in total.dims[1:]))[: total.ndim]))
        return found

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        codes, scale, *rest = operands
        total = rest[0].float().reshape(-1) if rest else None
        if total is not None and total.numel() > 1:
            for at in range(total.numel()):  # one tensor with one global scale each
                self._decode(target[at : at + 1], codes[at : at + 1], scale[at : at + 1], total[at : at + 1], box)
        else:
            self._decode(target, codes, scale, total, box)

    def _decode(
        self, target: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, total: torch.Tensor | None, box: Box
    ) -> None:
        import torch

        raw, axis, out = codes.view(torch.uint8), box[-1], dtypes.from_torch(target.dtype)
        table = self._table(scale, total, out, target.numel())
        if table is not None:
            found = self._looked_up(table, raw, scale, axis, target)
        else:
            pairs = pair_values(self.values, raw.device).view(torch.int64).view(-1)
            values = pairs.index_select(0, raw.reshape(-1).to(torch.int32)).view(torch.float32)
            found = self._picked(values.view(*raw.shape[:-1], -1), axis)
            factors = scales_as_float(scale) if total is None else self._with(scales_as_float(scale), total)
            if self._is_whole(axis):
                found = found.view(*scale.shape, self.group).mul_(factors.unsqueeze(-1)).view(target.shape)
            else:
                found = found * spread(factors, -1, axis, self.group)
        if found is not target:
            put(target, found)

    def _is_whole(self, axis: range) -> bool:
        return axis.step == 1 and axis[0] % self.group == 0 and len(axis) % self.group == 0

    def _picked(self, values: torch.Tensor, axis: range) -> torch.Tensor:
        """The wanted ones of the values in all words that were read."""
        first = axis[0] % self.per_word
        if axis.step > self.per_word and axis.step % self.per_word == 0:  # one value of each word
            return values[..., first :: self.per_word]
        return values[..., first : first + axis[-1] - axis[0] + 1 : axis.step]

    def _with(self, factors: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return factors / total if self.divides else factors * total

    def _table(self, scale: torch.Tensor, total: torch.Tensor | None, code: str, count: int) -> torch.Tensor | None:
        """The decoded pair of every (scale, byte), where scales have 256 values and the table is worth making."""
        if scale.element_size() > 1 or code not in _PAIRS or self.per_word != 2:
            return None
        scale_code = dtypes.from_torch(scale.dtype)
        if total is None:
            return _every_pair(self.values, scale_code, code, scale.device)
        if count < _TABLE_FROM:
            return None
        return _pair_table(self.values, self._with(scale_values(scale_code, scale.device), total), code)

    def _looked_up(
        self, table: torch.Tensor, raw: torch.Tensor, scale: torch.Tensor, axis: range, target: torch.Tensor
    ) -> torch.Tensor:
        """Two decoded values a lookup, no arithmetic left. Into the target itself where it is dense."""
        import torch

        high = scale.view(torch.uint8).to(torch.int32) << 8
        if self._is_whole(axis):
            index = high.unsqueeze(-1).bitwise_or(raw.view(*scale.shape, self.group // 2)).view(-1)
            if target.is_contiguous() and not target.storage_offset() % 2:
                flat = target.as_strided((target.numel(),), (1,))  # an axis of one element may have any stride
                torch.index_select(table, 0, index, out=flat.view(table.dtype))
                return target
        else:
            words = blocks_of(axis, self.per_word)
            index = spread(high, -1, words, self.group // 2).bitwise_or(raw).view(-1)
        values = table.index_select(0, index).view(target.dtype).view(*raw.shape[:-1], -1)
        return self._picked(values, axis)

    def lossy(self, node: Node) -> str | None:
        return f"dequantise 4 bits -> {dtypes.DTYPES[self.code].label}"

    def describe(self, node: Node) -> str:
        return f"decoded from 4 bits in groups of {self.group}"


def _pair_table(values: tuple[float, ...], factors: torch.Tensor, code: str) -> torch.Tensor:
    """For every (scale, byte), the two decoded values as one integer."""
    import torch

    pairs = factors.view(256, 1, 1) * pair_values(values, factors.device)
    return pairs.float().to(dtypes.to_torch(code)).view(-1).view(getattr(torch, _PAIRS[code]))


@lru_cache(maxsize=8)
def _every_pair(values: tuple[float, ...], scale_code: str, code: str, device: torch.device) -> torch.Tensor:
    # in float64, where 2 ** 128 is a number: as with ldexp, zero times it is zero
    factors = exponents(device) if scale_code == "U8" else scale_values(scale_code, device)
    return _pair_table(values, factors, code)

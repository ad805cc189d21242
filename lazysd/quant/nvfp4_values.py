"""From other formats to NVFP4 without touching a code: reciprocal global scales, and MXFP4's exponents as E4M3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import dtypes
from ..errors import LayoutError
from ..graph.base import Inputs
from ..graph.boxes import Box, Dims
from ..graph.compute import Computed
from ..graph.node import Node
from ..graph.rewrite import build, reshape
from .base import Parts
from .blocks import blocks_of
from .codes import EXPONENT_BIAS
from .reading import materialized

if TYPE_CHECKING:
    import torch

_TOP, _BOTTOM = 8, -9  # the powers of two that E4M3 holds, the lowest one as a subnormal


@dataclass(frozen=True, slots=True)
class Reciprocal(Computed):
    """1 / x in float32, rounded. `inverts`: the reciprocal of the result is x again, bit for bit."""

    inverts: bool = True

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        return inputs[0].dims, "F32"

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        return [(node.inputs[0], box)]

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        target.copy_(1.0 / operands[0].float())

    def lossy(self, node: Node) -> str | None:
        return None if self.inverts else "a global scale that is the reciprocal of no float32, rounded"

    def describe(self, node: Node) -> str:
        return "reciprocal"


def reciprocal(node: Node) -> Node:
    """1 / x; of a reciprocal, the very tensor that it is of. Reads the number, to say whether 1 / (1 / x) is x again.

    So it is for every significand up to the square root of 2, and for 71 % of those above it; others come back one unit
    in the last place off, and no float32 would do better: there are fewer reciprocals than numbers.

    Raises LayoutError where a number other than zero is so small that infinity would be its reciprocal.
    """
    below = node
    while below.op.is_view:
        below = below.inputs[0]
    if isinstance(below.op, Reciprocal):
        return reshape(below.inputs[0], node.dims)
    value = materialized(node).float()
    inverse = 1.0 / value
    if bool((inverse.isinf() & (value != 0)).any()):
        raise LayoutError(f"its global scale, {float(value.reshape(-1)[0]):g}, has no reciprocal in float32")
    return build(Reciprocal(bool(((1.0 / inverse == value) | value.isnan()).all())), (node,))


@dataclass(frozen=True, slots=True)
class PowersAsE4M3(Computed):
    """Exponents (..., G) with bias 127 as E4M3 scales of half as many values each, (..., 2 G), over 2 ** `shift`."""

    shift: int

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        dims = inputs[0].dims
        return (*dims[:-1], 2 * dims[-1]), "F8_E4M3"

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        return [(node.inputs[0], (*box[:-1], blocks_of(box[-1], 2)))]

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        import torch

        axis = box[-1]
        powers = operands[0].view(torch.uint8).to(torch.int32) - (EXPONENT_BIAS + self.shift)
        # below what E4M3 holds are groups of zeros only, which from_mxfp4 has made sure of
        values = torch.ldexp(torch.ones_like(powers, dtype=torch.float32), powers.clamp(min=_BOTTOM))
        blocks = blocks_of(axis, 2)
        which = torch.tensor([(at // 2 - blocks.start) // blocks.step for at in axis], device=values.device)
        target.copy_(values.index_select(-1, which).to(torch.float8_e4m3fn))

    def describe(self, node: Node) -> str:
        return "powers of two as E4M3"


def from_mxfp4(parts: Parts) -> tuple[Node, Node, float]:
    """(codes, E4M3 scales, global scale to multiply by) of an MXFP4 weight, every value the same.

    Reads the scales, and the codes where scales span more than E4M3 does. Raises LayoutError where a value other than
    zero stands under a scale that E4M3 cannot hold beside the largest one.
    """
    codes, scale = parts["codes"], parts["scale"]
    packed = codes if codes.ndim == scale.ndim else reshape(codes, (*scale.dims[:-1], scale.dims[-1] * codes.dims[-1]))
    used = materialized(scale).view(_uint8()).long()
    top = int(used.max()) if used.numel() else EXPONENT_BIAS
    low = used < top - (_TOP - _BOTTOM)
    if top == 255 or bool(low.any()):
        values = materialized(packed).unflatten(-1, (scale.dims[-1], -1))
        held = ((values & 0x77) != 0).any(dim=-1)  # groups that hold more than zeros
        top = int(used[held].max()) if bool(held.any()) else EXPONENT_BIAS
        lost = int((held & (used < top - (_TOP - _BOTTOM))).sum())
        if lost or top == 255:
            raise LayoutError(
                f"{lost} of {used.numel()} groups have scales more than 2 ** {_TOP - _BOTTOM} below the largest, which "
                "NVFP4 cannot hold; decode first, and encode with rounding: dequantize(), quantize()"
            )
    shift = top - EXPONENT_BIAS - _TOP
    if not -126 <= shift <= 126:
        raise LayoutError(f"its largest scale is 2 ** {top - EXPONENT_BIAS}, for which F32 has no exact global scale")
    return packed, build(PowersAsE4M3(shift), (scale,)), 2.0**shift


def _uint8() -> torch.dtype:
    return dtypes.to_torch("U8")

"""Weights to FP4: codes of four bits, two a byte, and a scale for each group along a row.

Rounded to the nearest code, ties to the even one. Scales are chosen so that a group's largest value fits: no error
exceeds the scale, half of the widest gap. An E4M3 scale rounds, so that a value may exceed the largest code by a
sixteenth, and by half where the scale is a subnormal: groups 2 ** 14 below the largest one lose more.

Source: OCP Microscaling Formats 1.0 (E2M1, E8M0); the choice of scales is that of triton_kernels' numerics_details/mxfp
(MXFP4, what transformers 5.23 quantises by) and of ModelOpt's nvfp4_tensor (NVFP4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import dtypes
from ..errors import LayoutError
from ..graph.base import Inputs
from ..graph.boxes import Box, Dims
from ..graph.compute import Computed
from .blocks import blocks_of
from .codes import E4M3_MAX, EXPONENT_BIAS, FP4_MAX, exponents

if TYPE_CHECKING:
    import torch

    from ..graph.node import Node

SMALLEST_E4M3 = 2.0**-9


@dataclass(frozen=True, slots=True)
class _InGroups(Computed):
    """An op over groups of a row of a weight (..., R, C)."""

    group: int
    total: float | None = None  # NVFP4's global scale, to multiply by; None: MXFP4, whose scales are powers of two

    def _check(self, inputs: Inputs) -> Dims:
        (weight,) = inputs
        if weight.ndim < 2 or weight.dims[-1] % self.group:
            raise ValueError(f"rows of {list(weight.dims)} do not divide into groups of {self.group}")
        return weight.dims

    def _scales(self, groups: torch.Tensor) -> torch.Tensor:
        """The stored scales of float32 groups (..., group)."""
        import torch

        largest = groups.abs().amax(dim=-1)
        if not bool(largest.isfinite().all()):
            raise LayoutError("a weight holds NaN or infinity, for which FP4 has no code")
        if self.total is None:
            # the smallest power of two, times 6 = 0.75 * 2 ** 3, that is not below the largest value
            mantissa, exponent = torch.frexp(largest)
            power = exponent - 3 + (mantissa > 0.75).to(exponent.dtype) + EXPONENT_BIAS
            return torch.where(largest > 0, power.clamp(0, 254), 0).to(torch.uint8)
        wanted = (largest / FP4_MAX / self.total).clamp(SMALLEST_E4M3, E4M3_MAX)
        return torch.where(largest > 0, wanted, 1.0).to(torch.float8_e4m3fn)

    def _factors(self, stored: torch.Tensor) -> torch.Tensor:
        """What codes are multiplied by, float32."""
        if self.total is None:
            return exponents(stored.device)[stored.long()].float()
        return stored.float() * self.total


@dataclass(frozen=True, slots=True)
class Fp4Scale(_InGroups):
    """The scales of a weight (..., R, C): (..., R, C/group), U8 exponents or E4M3."""

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        dims = self._check(inputs)
        return (*dims[:-1], dims[-1] // self.group), "U8" if self.total is None else "F8_E4M3"

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        axis = box[-1]
        return [(node.inputs[0], (*box[:-1], range(axis[0] * self.group, (axis[-1] + 1) * self.group)))]

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        stored = self._scales(operands[0].float().unflatten(-1, (-1, self.group)))
        target.copy_(stored[..., :: box[-1].step])

    def describe(self, node: Node) -> str:
        return f"scales of groups of {self.group}"


@dataclass(frozen=True, slots=True)
class Fp4Codes(_InGroups):
    """The codes of a weight (..., R, C), two a byte, low bits first: U8 (..., R, C/2)."""

    @property
    def align(self) -> int:  # type: ignore[override]
        return self.group // 2

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        dims = self._check(inputs)
        return (*dims[:-1], dims[-1] // 2), "U8"

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        groups = blocks_of(box[-1], self.group // 2)
        wanted = range(groups[0] * self.group, (groups[-1] + 1) * self.group)
        return [(node.inputs[0], (*box[:-1], wanted))]

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        import torch

        groups = operands[0].float().unflatten(-1, (-1, self.group))
        factors = self._factors(self._scales(groups)).unsqueeze(-1)
        scaled = torch.where(factors > 0, groups.abs() / factors, 0.0)
        code = fp4_code(scaled).add_(torch.signbit(groups).to(torch.uint8), alpha=8).flatten(-2)
        packed = code[..., 0::2] | (code[..., 1::2] << 4)
        axis = box[-1]
        first = axis[0] % (self.group // 2)
        target.copy_(packed[..., first : first + axis[-1] - axis[0] + 1 : axis.step])

    def lossy(self, node: Node) -> str | None:
        kind = "mxfp4" if self.total is None else "nvfp4"
        return f"quantise {dtypes.DTYPES[node.inputs[0].code].label} -> {kind}"

    def describe(self, node: Node) -> str:
        return f"FP4 codes in groups of {self.group}"


def fp4_code(magnitudes: torch.Tensor) -> torch.Tensor:
    """The code nearest to each magnitude, ties to the even code; U8 from 0 to 7."""
    import torch

    code = torch.zeros(magnitudes.shape, dtype=torch.uint8, device=magnitudes.device)
    for k, middle in enumerate((0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)):
        code += magnitudes >= middle if k % 2 else magnitudes > middle
    return code

"""Computing ops: they change values. Each says which boxes of its inputs a box of the result needs, and computes it.

The mover gives them their operands in scratch tiles and a destination to write; nothing here reads or allocates more
than the tile's own size. `lossy` names what cannot be undone; plans and command lines show it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .. import dtypes
from ..errors import LayoutError
from . import floats
from .base import Inputs, Op
from .boxes import Box, Dims

if TYPE_CHECKING:
    import torch

    from .node import Node

FLOATS = ("F8_E8M0", "F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")
_COMPLEX = ("C64",)
# Which float types hold every value of which others (range and precision both).
_WIDER = {"F16": ("F32", "F64"), "BF16": ("F32", "F64"), "F32": ("F64",)}
_WIDER |= {"F8_E4M3": ("F16", "BF16", "F32", "F64"), "F8_E5M2": ("F16", "BF16", "F32", "F64")}
_WIDER |= {"F8_E8M0": ("BF16", "F32", "F64")}
# Widening casts after which a narrowing one gives every code back. Elsewhere NaNs lose their payload: conversions quiet
# them, and torch narrows them to one code. Tried over all codes: e8m0 has one NaN, e4m3 two, which only bf16 confuses.
_EVERY_CODE = {("F8_E8M0", wide) for wide in _WIDER["F8_E8M0"]} | {("F8_E4M3", wide) for wide in ("F16", "F32", "F64")}


class Computed(Op):
    """An op whose result has to be calculated, tile by tile."""

    by_bits: ClassVar[bool] = False  # compares and moves bits: tensors come as integers, on the host without torch
    align: int = 1  # tiles are cut at multiples of this many indices where possible
    align_columns: int = 1  # more than one: a tile of fewer than `align` rows would take the operands of all of them
    temporary_nbytes: ClassVar[int] = 24  # that computing takes for each element of the largest operand, or the result

    @abstractmethod
    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        """The input boxes that a box of the result needs."""

    @abstractmethod
    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        """Write the box into `target` (any strides), given dense operands in the order of `operands()`."""

    def least_elements(self, node: Node, box: Box) -> int:
        """Elements of a box below which cutting saves nothing, for the operands of smaller ones are as large."""
        return 1

    def lossy(self, node: Node) -> str | None:
        """What is lost for good, in a few words; None where the step can be undone exactly."""
        return None

    def confuses(self, node: Node) -> str | None:
        """Which bit patterns do not come back though every value does, in a few words; None where all do."""
        return None


def put(target: torch.Tensor, values: torch.Tensor) -> None:
    """Write values into a destination of any strides, rounded as torch rounds, to the same bits whatever the strides.

    torch's kernels for dense and for strided tensors spell the NaNs of bfloat16 differently; so what is rounded is
    rounded densely.
    """
    if values.dtype != target.dtype:
        values = values.contiguous()
        if not target.is_contiguous():
            values = values.to(target.dtype)
    target.copy_(values)


@dataclass(frozen=True, slots=True)
class Cast(Computed):
    """The same values in another dtype, rounded as torch rounds."""

    temporary_nbytes: ClassVar[int] = 4  # a dense copy, where the destination has gaps
    code: str
    source: str = ""  # the dtype of the values; with it, some casts need no torch

    @property
    def by_bits(self) -> bool:  # type: ignore[override]
        return (self.source, self.code) in floats.PAIRS

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        if self.source not in ("", inputs[0].code):
            raise ValueError(f"a cast from {self.source} was asked for, the values are {inputs[0].code}")
        return inputs[0].dims, self.code

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        return [(node.inputs[0], box)]

    def compute(self, target: Any, operands: list[Any], box: Box) -> None:
        if not self.by_bits:
            put(target, operands[0])
        elif not floats.cast(self.source, self.code, target, operands[0]):
            put(floats.as_torch(target, self.code), floats.as_torch(operands[0], self.source))

    def lossy(self, node: Node) -> str | None:
        source = node.inputs[0].code
        if self.code in _WIDER.get(source, ()):
            return None
        return f"cast {dtypes.DTYPES[source].label} -> {dtypes.DTYPES[self.code].label}"

    def confuses(self, node: Node) -> str | None:
        source = node.inputs[0].code
        if self.code not in _WIDER.get(source, ()) or (source, self.code) in _EVERY_CODE:
            return None
        return f"payloads of NaNs, cast {dtypes.DTYPES[source].label} -> {dtypes.DTYPES[self.code].label}"

    def describe(self, node: Node) -> str:
        return f"cast from {dtypes.DTYPES[node.inputs[0].code].label}"


@dataclass(frozen=True, slots=True)
class AddMatmul(Computed):
    """base (..., M, N) + scale * A (..., M, r) @ B (..., r, N), in float32, rounded once to the base's dtype.

    In float64 where the base or a factor is. The rank's terms are added one after the other, element by element: a
    matrix product may add in another order for another shape, and the bits would depend on how a tile was cut.

    Source: the LoRA update, W + scale * B A; here in the orientation of the operands given.
    """

    temporary_nbytes: ClassVar[int] = 16  # the sum and one term of it
    scale: float

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        base, a, b = inputs
        if a.dims[:-1] != base.dims[:-1] or b.dims != (*base.dims[:-2], a.dims[-1], base.dims[-1]):
            raise ValueError(f"cannot add {list(a.dims)} @ {list(b.dims)} to {list(base.dims)}")
        if base.code not in _COMPLEX and (a.code in _COMPLEX or b.code in _COMPLEX):
            raise ValueError(f"cannot add the product of {a.code} and {b.code} factors to a {base.code} base")
        return base.dims, base.code

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        base, a, b = node.inputs
        rank = range(a.dims[-1])
        return [(base, box), (a, (*box[:-1], rank)), (b, (*box[:-2], rank, box[-1]))]

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        import torch

        base, dtype = operands[0], torch.float32
        for operand in operands:
            dtype = torch.promote_types(dtype, operand.dtype if operand.dtype.itemsize > 1 else torch.float32)
        a, b = (factor.to(dtype) for factor in operands[1:])
        total, term = (torch.zeros(base.shape, dtype=a.dtype, device=base.device) for _ in range(2))
        for k in range(a.shape[-1]):
            torch.mul(a[..., k : k + 1], b[..., k : k + 1, :], out=term)
            total.add_(term)
        put(target, total.mul_(self.scale).add_(base))

    def lossy(self, node: Node) -> str | None:
        return "merge of a LoRA update"

    def describe(self, node: Node) -> str:
        return f"merged with rank {node.inputs[1].dims[-1]}, scale {self.scale:g}"


@dataclass(frozen=True, slots=True)
class Agree(Computed):
    """The first input, once it is known that the others hold the same bits. What differs is found as it is read.

    Formats that keep one tensor in several places (gate and up with one lora_A) are read through this.
    """

    by_bits = True
    temporary_nbytes: ClassVar[int] = 0

    names: tuple[str, ...]  # of the inputs, for the error
    hint: str = (  # why they have to agree, and what to do
        "but the layout asked for keeps one tensor for both; "
        "keep both, exactly, at twice the rank: convert(..., merge_rank=True), --merge-rank"
    )

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        first = inputs[0]
        for name, other in zip(self.names, inputs, strict=True):
            if other.dims != first.dims or other.code != first.code:
                raise ValueError(
                    f"{name} is {other.code}{list(other.dims)}, {self.names[0]} is {first.code}{list(first.dims)}"
                )
        return first.dims, first.code

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        return [(part, box) for part in node.inputs]

    def compute(self, target: Any, operands: list[Any], box: Box) -> None:
        first, *others = operands
        for name, other in zip(self.names[1:], others, strict=True):
            if (first != other).any():
                raise LayoutError(f"{self.names[0]} and {name} differ, {self.hint}")
        target[...] = first

    def describe(self, node: Node) -> str:
        return f"{len(node.inputs)} equal tensors"

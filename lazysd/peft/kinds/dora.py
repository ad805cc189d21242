"""DoRA: the rows of weight + scale * lora_B @ lora_A, each brought to a length of its own. Source: peft 0.21.2."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import LayoutError
from ...graph.base import Inputs
from ...graph.boxes import Box, Dims
from ...graph.compute import AddMatmul, Computed
from ...graph.node import Node
from ...graph.rewrite import build
from ..config import CONFIG, AdapterConfig
from ..kind import MERGEABLE, Wrapped
from .lora import EMBEDDING, A, B, Lora, not_fitting, oriented

if TYPE_CHECKING:
    import torch

VECTOR = ("lora_magnitude_vector", "lora_magnitude_vector.weight")  # the first is how PEFT saves it
LEAST = 1 << 19  # elements of whole rows that a tile holds at least, where the rank asks for so many
CHUNK = 1 << 16  # elements whose squares are held in float64 at a time, as long as a row is not longer


class Dora:
    """LoRA and a magnitude for each output. PEFT has it for linear layers; for embeddings it is not merged here."""

    name = "DoRA"
    peft_type = "LORA"
    ends: Mapping[str, str] = dict.fromkeys(VECTOR, "")
    marks = (".lora_magnitude_vector",)

    def takes(self, ends: Collection[str]) -> bool:
        return any(set(ends) in ({A, B, vector}, {*EMBEDDING, vector}) for vector in VECTOR)

    def refuses(self, said: AdapterConfig) -> list[str]:
        return Lora().refuses(said)

    def merge(self, wrapped: Wrapped) -> Node:
        if wrapped.said.values and not wrapped.said.values.get("use_dora"):
            raise LayoutError(
                f"{wrapped.module}: it has a lora_magnitude_vector, but {CONFIG} does not set use_dora; PEFT would "
                "leave the vector out. Correct the wrong one"
            )
        if EMBEDDING[0] in wrapped.factors:
            raise LayoutError(
                f"{wrapped.module}: DoRA of an embedding takes norms over the whole vocabulary, which merge does not "
                "compute; merge it with PEFT"
            )
        left, right, scale = oriented(wrapped)
        magnitude = next(wrapped.factors[end] for end in VECTOR if end in wrapped.factors)
        try:
            return build(AddMatmulNormed(scale), (wrapped.node, left, right, magnitude))
        except ValueError as error:
            raise not_fitting(wrapped, error) from error

    def summary(self, said: AdapterConfig) -> dict[str, Any]:
        return {"kind": self.name}


@dataclass(frozen=True, slots=True)
class AddMatmulNormed(Computed):
    """Rows of base (M, N) + scale * A (M, r) @ B (r, N), each divided by its length and multiplied by magnitude (M).

    In float32, or float64 where the base or a factor is, rounded once to the base's dtype. A row's length is summed in
    float64, in one fixed order, so that its bits do not depend on how a tile was cut. A box needs its rows whole.
    """

    scale: float

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        base, a, b, magnitude = inputs
        if base.ndim != 2 or magnitude.dims != base.dims[:1]:
            raise ValueError(f"magnitudes {list(magnitude.dims)} are not one for each row of {list(base.dims)}")
        if magnitude.code not in MERGEABLE:
            raise ValueError(f"magnitudes are {magnitude.code}, expected a floating-point type")
        return AddMatmul(self.scale).infer((base, a, b))

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        whole = (box[0], range(node.dims[1]))
        return [*AddMatmul(self.scale).operands(_sum_of(node), whole), (node.inputs[3], box[:1])]

    def least_elements(self, node: Node, box: Box) -> int:
        """As many rows as the rank, as far as LEAST goes: then they are as large as B, which every tile needs whole."""
        rows = min(len(box[0]), node.inputs[1].dims[-1], max(1, LEAST // max(1, node.dims[1])))
        return rows * len(box[1])

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        import torch

        base, a, b, magnitude = operands
        dtype = torch.float32
        for operand in operands:
            dtype = torch.promote_types(dtype, operand.dtype if operand.dtype.itemsize > 1 else torch.float32)
        total = torch.empty(base.shape, dtype=dtype, device=base.device)
        AddMatmul(self.scale).compute(total, [base.to(dtype), a, b], box)
        step = max(1, CHUNK // max(1, total.shape[1]))
        for start in range(0, total.shape[0], step):
            rows = total[start : start + step]
            rows.mul_((magnitude[start : start + step].to(dtype) / _lengths(rows)).unsqueeze(1))
        columns = box[1]
        target.copy_(total[:, columns.start : columns.stop : columns.step])

    def lossy(self, node: Node) -> str | None:
        return "merge of a DoRA update"

    def describe(self, node: Node) -> str:
        return f"merged with DoRA of rank {node.inputs[1].dims[-1]}, scale {self.scale:g}"


def _sum_of(node: Node) -> Node:
    """The node without its magnitudes, for what AddMatmul says of its operands."""
    return node.like(AddMatmul(0.0), node.inputs[:3], node.dims, node.code)


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    """The length of each row, its squares added by halves: the same bits for one row as for many."""
    import torch

    squares = rows.to(torch.float64, copy=True).square_()
    width = squares.shape[1]
    while width > 1:
        half = width // 2
        squares[:, :half].add_(squares[:, width - half : width])
        width -= half
    return squares[:, :1].sum(1).sqrt_().to(rows.dtype)


KIND = Dora()

"""Sharded: a tensor of which this process holds a part. Nothing here knows torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import LayoutError
from .base import Inputs, Piece, Structural
from .boxes import Dims
from .node import Node


@dataclass(frozen=True, slots=True, eq=False)
class Sharded(Structural):
    """Part of a tensor on this rank; the other parts are on other ranks. The node's only input is the local part."""

    device_mesh: Any
    placements: tuple[Any, ...]

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        raise TypeError("a sharded node is built with its global shape")

    def route(self, piece: Piece) -> Iterator[Piece]:
        raise LayoutError(
            f"a tensor of shape {list(piece.node.dims)} is spread over ranks, and this one holds only a part (.local); "
            "to save or combine whole tensors, convert without a mesh (lazysd.distributed.save shares out the work)"
        )

    def describe(self, node: Node) -> str:
        return f"{list(node.inputs[0].dims)} of it here, {', '.join(map(str, self.placements))}"

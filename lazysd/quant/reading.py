"""What a scheme has to read before it can build: a weight's largest magnitude, small tensors that state something."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ..errors import LayoutError
from ..graph.boxes import box_dims, full_box, tiles
from ..graph.node import Node

if TYPE_CHECKING:
    import torch

_TILE_NBYTES = 4 << 20


def largest(node: Node) -> float:
    """The largest magnitude. Reads the tensor once, tile by tile. LayoutError where it holds NaN or infinity."""
    import torch

    from .. import dtypes
    from ..move.fill import fill_node

    most = 0.0
    for box in tiles(full_box(node.dims), node.itemsize, _TILE_NBYTES) if prod(node.dims) else ():
        tile = torch.empty(box_dims(box), dtype=dtypes.to_torch(node.code))
        fill_node(tile, node, box)
        found = float(tile.float().abs().max())
        if not found < float("inf"):
            raise LayoutError("a weight holds NaN or infinity, for which FP4 has no code")
        most = max(most, found)
    return most


def materialized(node: Node) -> torch.Tensor:
    """A small tensor, read."""
    import torch

    from .. import dtypes
    from ..move.fill import fill_node

    made = torch.empty(node.dims, dtype=dtypes.to_torch(node.code))
    fill_node(made, node, full_box(node.dims))
    return made

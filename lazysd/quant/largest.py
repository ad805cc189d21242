"""The largest magnitude of a weight, which formats with a scale for all of a tensor need before its first code."""

from __future__ import annotations

from math import prod

from ..errors import LayoutError
from ..graph.boxes import box_dims, full_box, tiles
from ..graph.node import Node

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

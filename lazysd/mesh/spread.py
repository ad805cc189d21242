"""Grouped experts of a layout, spread over a DeviceMesh: each rank keeps, and reads, its own experts only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import LayoutError
from ..layouts.keys import parse_key
from ..layouts.rule import Layout
from ..tensor.lazy import LazyTensor
from .tensors import experts_of, on_mesh

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def spread_experts(tensors: Mapping[str, LazyTensor], layout: Layout, mesh: DeviceMesh) -> dict[str, LazyTensor]:
    """Every tensor of `layout` whose first axis is experts as a LazyDTensor on `mesh`; others stay whole.

    LoRA tensors stay whole too, as NeMo keeps them. Raises LayoutError where the layout groups no experts.
    """
    grouped = [
        parse_key(rule.to)
        for rule in layout.rules
        if "lora_" not in rule.to and (axes := rule.ends(True).target_side).groups[0] == ("e",) and not axes.keys
    ]
    if not grouped:
        raise LayoutError(f"layout {layout.name!r} groups no experts, so there is nothing to spread over a mesh")
    result = dict(tensors)
    for key, node in tensors.items():
        if any(template.match(key) for template in grouped):
            mine = experts_of(mesh, node.dims[0])
            result[key] = on_mesh(node.narrow(0, mine.start, len(mine)), mesh, node.dims[0])
    return result

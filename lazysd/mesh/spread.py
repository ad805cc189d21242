"""Grouped experts of a layout, spread over a DeviceMesh: each rank keeps, and reads, its own experts only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import LayoutError
from ..layouts.keys import parse_key
from ..layouts.rule import Layout
from ..quant.registry import find
from ..tensor.lazy import LazyTensor
from .tensors import experts_of, on_mesh

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def spread_experts(
    tensors: Mapping[str, LazyTensor], layout: Layout, mesh: DeviceMesh, settings: Mapping[str, Any]
) -> dict[str, LazyTensor]:
    """Every tensor of `layout` whose first axis is experts as a LazyDTensor on `mesh`; others stay whole.

    Codes and scales of a quantised weight, which `settings` (quantization_config) describe, go where the weight would.
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
    owners = {part: weight.key for weight in find(tensors, settings) for part in weight.parts.values()}
    for key, node in tensors.items():
        if any(template.match(owners.get(key, key)) for template in grouped):
            mine = experts_of(mesh, node.dims[0])
            result[key] = on_mesh(node.narrow(0, mine.start, len(mine)), mesh, node.dims[0])
    return result

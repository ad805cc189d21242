"""What a checkpoint is, in numbers and sentences: parameters, bits, shards, what is irregular. Reads headers only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from . import layouts
from .arguments import checked
from .checkpoint import Checkpoint
from .display.layers import irregular_layers
from .errors import LazysdError
from .graph.boxes import full_box, row_major
from .graph.leaves import FileRange
from .graph.node import Node
from .graph.walk import pieces
from .peft.holding import adapter_summary
from .quant import registry

_EXPERT = re.compile(r"(?:^|\.)(?:experts|local_experts)(?:\.|$)")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k", "top_k_experts", "moe_topk")
_IN_ALL = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")


@checked
def overview(ckpt: Checkpoint) -> dict[str, Any]:
    """The facts above the list of keys; sizes in bytes, what cannot be told is None.

    `parameters` counts weights, not what stands for them: of a quantised weight its values, and no scales.
    `active_parameters` are those that one token meets, where config.json says how many experts that are.
    """
    try:
        layout, family = ckpt.layout, ckpt.family
    except LazysdError as error:
        layout, family = f"undecided: {error}", None
    counts, schemes, problem = _parameters(ckpt)
    total = sum(counts.values())
    data: dict[str, Any] = {
        "path": str(ckpt.path),
        "layout": layout,
        "family": family,
        "because": layouts.explain(ckpt, ckpt.config, ckpt.facts.family, ckpt.facts.layout),
        "model_type": (ckpt.config or {}).get("model_type"),
        "tensors": len(ckpt),
        "parameters": total,
        "active_parameters": None if ckpt.facts.absent else _active(counts, ckpt.config),
        "bits_per_weight": round(8 * ckpt.nbytes / total, 3) if total else None,
        "quantization": schemes,
        "nbytes": ckpt.nbytes,
        "dtypes": _by_dtype(ckpt),
        "files": len(ckpt.files),
        "shards": _shards(ckpt),
        "metadata": dict(ckpt.metadata),
        "irregular": [] if ckpt.facts.absent else irregular_layers(ckpt),
        "missing": [absent.as_dict() for absent in ckpt.facts.absent],
        "remarks": [*ckpt.remarks, *([problem] if problem else [])],
    }
    if ckpt.adapter is not None or any(".lora_" in key for key in ckpt):
        data["adapter"] = adapter_summary(ckpt)
    return data


def first_read(node: Node) -> tuple[str, int] | None:
    """(file, offset) of the first byte that a node needs, where a plain tensor of a file is under it."""
    for piece in pieces(node, full_box(node.dims), 0, row_major(node.dims)):
        if isinstance(op := piece.node.op, FileRange):
            return op.file.path, op.offset
        return None
    return None


def _by_dtype(ckpt: Checkpoint) -> dict[str, int]:
    found: Counter[str] = Counter()
    for node in ckpt.values():
        found[node.code] += node.nbytes
    return dict(found)


def _parameters(ckpt: Checkpoint) -> tuple[dict[str, int], dict[str, int], str | None]:
    """Values by key of the weight, how many weights each scheme stores, and what kept a scheme from being read."""
    counts = {key: node.numel() for key, node in ckpt.items()}
    schemes: Counter[str] = Counter()
    try:
        settings = registry.settings_of(ckpt.config)
        weights = registry.find(ckpt, settings)
        shapes = [registry.dims(weight, ckpt, settings) for weight in weights]
    except LazysdError as error:
        return counts, {}, f"the quantised weights cannot be read: {error}"
    for weight, dims in zip(weights, shapes, strict=True):
        schemes[weight.scheme.name] += 1
        for part in registry.parts_of([weight]):
            counts.pop(part, None)
        counts[weight.key] = prod(dims)
    return counts, dict(schemes), None


def _active(counts: Mapping[str, int], config: Mapping[str, Any] | None) -> int | None:
    used, held = (next(_stated(config or {}, names), None) for names in (_PER_TOKEN, _IN_ALL))
    if not used or not held or used > held:
        return None
    experts = sum(count for key, count in counts.items() if _EXPERT.search(key))
    return sum(counts.values()) - experts + experts * used // held


def _stated(config: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[int]:
    """A number under any of these names, in config.json or one of its parts."""
    tables = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    for table in tables:
        for name in names:
            value = table.get(name)
            if type(value) is int and value > 0:
                yield value


def _shards(ckpt: Checkpoint) -> list[dict[str, Any]]:
    """Bytes and tensors of each file that the checkpoint was opened from."""
    found: dict[str, list[int]] = {file.path: [0, 0] for file in ckpt.files}
    for node in ckpt.values():
        if isinstance(op := node.op, FileRange) and op.file.path in found:
            found[op.file.path][0] += 1
            found[op.file.path][1] += node.nbytes
    return [
        {"name": path.rsplit("/", 1)[-1], "tensors": tensors, "nbytes": nbytes}
        for path, (tensors, nbytes) in found.items()
    ]

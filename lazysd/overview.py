"""What a checkpoint is, in numbers and sentences: parameters, bits, shards, what is irregular. Reads headers only."""

from __future__ import annotations

from collections import Counter
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
from .parameters import parameters_of
from .peft.holding import adapter_summary


@checked
def overview(ckpt: Checkpoint) -> dict[str, Any]:
    """The facts above the list of keys; sizes in bytes, what cannot be told is None.

    `parameters` and `active_parameters` as in parameters.Parameters.
    """
    try:
        layout, family = ckpt.layout, ckpt.family
    except LazysdError as error:
        layout, family = f"undecided: {error}", None
    plain = ckpt._quantised.plain  # as layouts see it: packed codes go by the name of their weight
    if layout is None and (found := layouts.dense_layout(plain, ckpt.config, family)) is not None:
        layout, family = found
    counted = parameters_of(ckpt, ckpt.config, not ckpt.facts.absent)
    total = counted.total
    data: dict[str, Any] = {
        "path": str(ckpt.path),
        "layout": layout,
        "family": family,
        "because": layouts.explain(plain, ckpt.config, ckpt.facts.family, ckpt.facts.layout),
        "model_type": (ckpt.config or {}).get("model_type"),
        "tensors": len(ckpt),
        "parameters": total,
        "active_parameters": counted.active,
        "bits_per_weight": round(8 * ckpt.nbytes / total, 3) if total else None,
        "quantization": dict(counted.schemes),
        "nbytes": ckpt.nbytes,
        "dtypes": _by_dtype(ckpt),
        "files": len(ckpt.files),
        "shards": _shards(ckpt),
        "metadata": dict(ckpt.metadata),
        "irregular": [] if ckpt.facts.absent else irregular_layers(ckpt),
        "missing": [absent.as_dict() for absent in ckpt.facts.absent],
        "remarks": [*ckpt.remarks, *([counted.problem] if counted.problem else [])],
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

"""Show what a checkpoint holds: layout, sizes, dtypes, keys. Reads headers only."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from .. import dtypes
from ..checkpoint import Checkpoint
from ..display.text import printable, tree
from ..errors import LayoutError
from ..peft.holding import adapter_summary
from ..sizes import format_nbytes
from .common import add_json, add_source, emit, opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("--keys", action="store_true", help="list every key instead of folding repeated ones")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    with opened(args.checkpoint, args) as checkpoint:
        data = summary(checkpoint)
        if args.json:
            data["keys"] = {
                key: {"dtype": node.code, "shape": list(node.dims), "nbytes": node.nbytes}
                for key, node in checkpoint.items()
            }
        emit(args, "" if args.json else _text(checkpoint, data, args.keys), data)
    return 0


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts above the list of keys."""
    by_dtype: Counter[str] = Counter()
    for node in checkpoint.values():
        by_dtype[node.code] += node.nbytes
    try:
        layout, family = checkpoint.layout, checkpoint.family
    except LayoutError as error:
        layout, family = f"undecided: {error}", None
    data: dict[str, Any] = {
        "path": str(checkpoint.path),
        "layout": layout,
        "family": family,
        "tensors": len(checkpoint),
        "parameters": sum(node.numel() for node in checkpoint.values()),
        "nbytes": checkpoint.nbytes,
        "dtypes": dict(by_dtype),
        "files": len(checkpoint.files),
        "metadata": checkpoint.metadata,
    }
    if checkpoint.adapter is not None or any(".lora_" in key for key in checkpoint):
        data["adapter"] = adapter_summary(checkpoint)
    return data


def _adapter_lines(found: dict[str, Any]) -> list[str]:
    """What an adapter holds, for people."""

    def shown(value: Any) -> str:
        several = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return printable(several) if value not in (None, []) else "unknown"

    scale = "alpha / sqrt(rank)" if found["rslora"] else "alpha / rank"
    experts = f", {shown(found['num_experts'])} experts" if found["num_experts"] is not None else ""
    written = f"peft {shown(found['peft_version'])}" if found["peft_version"] is not None else "no peft_version"
    targets = [*(found.get("wrapped_parameters") or ()), *(found.get("wrapped_modules") or ())]
    nothing = "generation undecided" if found["layout"] is None else f"layout {found['layout']}, of no PEFT generation"
    lines = [
        f"adapter  LoRA of rank {shown(found['rank'])}, alpha {shown(found['alpha'])}, scale {scale}{experts}",
        f"         {shown(found['generation'] or nothing)} ({written})",
        f"         targets {shown(targets or found['target_parameters'] or found['target_modules'])}",
        f"         {found['tensors']} tensors, {format_nbytes(found['nbytes'])}",
    ]
    return lines + ([f"         problem: {printable(found['problem'])}"] if found["problem"] else [])


def _text(checkpoint: Checkpoint, data: dict[str, Any], every_key: bool) -> str:
    types = ", ".join(f"{dtypes.DTYPES[code].label} {format_nbytes(n)}" for code, n in data["dtypes"].items())
    files = f"{data['files']} file{'s' if data['files'] != 1 else ''}"
    lines = [
        printable(data["path"]),
        f"layout   {printable(data['layout'] or 'none known')}" + (f" ({data['family']})" if data["family"] else ""),
        f"tensors  {data['tensors']:,} in {files}, {data['parameters']:,} parameters",
        f"bytes    {format_nbytes(data['nbytes'])} ({types})" if types else "bytes    0",
        *(_adapter_lines(data["adapter"]) if "adapter" in data else ()),
        "",
    ]
    if every_key:
        lines += [f"{printable(key)}  {node!r}" for key, node in checkpoint.items()]
    else:
        lines.append(tree(checkpoint))
    return "\n".join(lines)

"""List families, dialects and which pairs exist; draw the table of a family's layout.

Without a name: every family with the layouts it has. FAMILY: its layouts, and why it lacks others. FAMILY --to LAYOUT:
the table from its files (or --from LAYOUT), a row for each kind of tensor. A layout's name shows its Qwen3-MoE table.

Examples:
  lazysd layouts
  lazysd layouts qwen3_moe --to nemo
"""

from __future__ import annotations

import argparse
from typing import Any

from .. import layouts
from ..errors import LayoutError
from ..layouts import drawing
from .common import add_json, add_tables, emit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="FAMILY", nargs="?", help="a family, or the name of a layout")
    parser.add_argument("--to", metavar="LAYOUT", help="draw the table to this layout")
    parser.add_argument("--from", dest="source", metavar="LAYOUT", default="hf", help="from this layout (default: hf)")
    add_tables(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.name is None:
        if args.to:
            raise LayoutError("--to needs a family: lazysd layouts FAMILY --to LAYOUT")
        data = drawing.overview()
        emit(args, _overview(data), data)
    elif args.to or args.name not in data_families():
        is_family = args.name in data_families()
        target = layouts.get(args.to or args.name, args.name if args.to else None)
        if args.to and not is_family:
            layouts.get(args.to, args.name)  # raises, naming the nearest families
        origin = layouts.get(args.source, target.family)
        emit(args, _table(origin, target), _table_data(origin, target))
    else:
        data = drawing.of_family(args.name)
        emit(args, _family(data), data)
    return 0


def data_families() -> list[str]:
    """Names of all families."""
    return list(drawing.overview()["families"])


def _overview(data: dict[str, Any]) -> str:
    width = max(map(len, data["families"]), default=0)
    names = max(map(len, data["dialects"]), default=0)
    lines = ["families, and the layouts each has:"]
    lines += [f"  {family:{width}}  {'  '.join(found['layouts'])}" for family, found in data["families"].items()]
    lines += ["", "dialects:"]
    lines += [f"  {name:{names}}  {description}" for name, description in data["dialects"].items()]
    return "\n".join([*lines, "", "`lazysd layouts FAMILY --to LAYOUT` draws a table"])


def _family(data: dict[str, Any]) -> str:
    names = [*data["layouts"], *data["not"]]
    width = max(map(len, names), default=0)
    lines = [data["family"]]
    for name, found in data["layouts"].items():
        lines += [f"  {name:{width}}  {found['description']}"]
        lines += [f"  {'':{width}}  from: {found['source']}"] if found["source"] else []
    lines += ["", *(f"  {name:{width}}  no: {why}" for name, why in data["not"].items())] if data["not"] else []
    return "\n".join(lines)


def _table(origin: layouts.Layout, target: layouts.Layout) -> str:
    lines = [
        f"{target.family}: {origin.name} -> {target.name}" + (f" ({target.description})" if target.description else "")
    ]
    rows = list(drawing.rows(origin, target))
    width = max((len(key) for row in rows for key in (row.key, row.to_key)), default=0)
    for row in rows:
        lines += [
            "",
            f"  {row.key:{width}}  {row.shape}",
            f"      {row.pattern}",
            f"  {row.to_key:{width}}  {row.to_shape}",
        ]
    lines += ["", "Every other key stays as it is."]
    lines += (
        [f"E experts, H hidden size, I intermediate size of an expert. Source: {target.source}"]
        if target.source
        else []
    )
    return "\n".join(lines)


def _table_data(origin: layouts.Layout, target: layouts.Layout) -> dict[str, Any]:
    return {
        "family": target.family,
        "from": origin.name,
        "to": target.name,
        "description": target.description,
        "source": target.source,
        "rules": [row._asdict() for row in drawing.rows(origin, target)],
    }

"""Show what a checkpoint holds: layout, sizes, dtypes, keys. Reads headers only.

Examples:
  lazysd inspect Qwen3-30B-A3B
  lazysd inspect Qwen3-30B-A3B --sort size --top 10
  lazysd inspect Qwen3-30B-A3B --tree --depth 3
  lazysd inspect Qwen3-30B-A3B --match "*.layers.0.*" --json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from .. import dtypes
from ..checkpoint import Checkpoint
from ..display.adapters import adapter_facts
from ..display.columns import hanging
from ..display.modules import module_tree
from ..display.text import Row, fold, listed
from ..overview import first_read, overview
from ..sizes import format_nbytes
from ..stores.strict_json import printable
from .common import add_json, add_source, count, emit, opened, width
from .wording import in_options

MAX_SHARDS = 8  # listed by name; more are counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("--match", metavar="GLOB", help="show only matching keys; the numbers above are of all")
    parser.add_argument("--keys", action="store_true", help="list every key instead of folding repeated ones")
    parser.add_argument(
        "--sort", choices=("file", "name", "size"), default="file", help="order of rows (default: file)"
    )
    parser.add_argument("--top", type=count, metavar="N", help="show at most N rows")
    parser.add_argument("--tree", action="store_true", help="show modules, indented, with what each holds")
    parser.add_argument("--depth", type=count, metavar="N", help="show no more than N levels of --tree")
    add_json(parser)
    parser.add_argument(
        "--json-lines", action="store_true", help="one JSON object a line: the summary, then each tensor"
    )


def run(args: argparse.Namespace) -> int:
    with opened(args.checkpoint, args, partial=True) as checkpoint:
        data = overview(checkpoint)
        shown = checkpoint.select(args.match) if args.match else checkpoint
        if args.json_lines:
            print(json.dumps(data))
            for entry in _entries(shown):
                print(json.dumps(entry))
        elif args.json:
            data["keys"] = {entry.pop("key"): entry for entry in _entries(shown)}
            emit(args, "", data)
        else:
            head = (hanging(line, width()) for line in _head(data))
            emit(args, "\n".join([*head, "", _listing(shown, args)]), data)
    return 0


def _entries(checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """Every tensor for programs: dtype, shape, bytes, and where its first byte lies."""
    for key, node in checkpoint.items():
        place = first_read(node)
        where = {"file": place[0], "offset": place[1]} if place else {}
        yield {"key": key, "dtype": node.code, "shape": list(node.dims), "nbytes": node.nbytes, **where}


def _listing(checkpoint: Checkpoint, args: argparse.Namespace) -> str:
    """The keys, as the arguments ask for them."""
    rows = fold(checkpoint)
    if args.keys:
        rows = [Row(printable(k), n.code, n.dims, 1, n.nbytes, (k,)) for k, n in checkpoint.items()]
    if args.sort != "file":
        rows = sorted(rows, key=lambda row: -row.nbytes if args.sort == "size" else row.name)
    if args.tree or args.depth:
        more = sum(row.num_keys for row in rows[args.top or len(rows) :])
        tree = module_tree(rows[: args.top], args.depth, width())
        return f"{tree}\n… and {more} more tensors" if more else tree
    return listed(rows, args.top, width())


def _head(data: dict[str, Any]) -> Iterator[str]:
    """The facts above the list."""
    yield printable(data["path"])
    family = f" ({data['family']})" if data["family"] else ""
    unknown = "none known" if "adapter" not in data or data["adapter"]["problem"] else "none: it wraps no experts"
    yield f"layout   {printable(data['layout'] or unknown)}{family}"
    if not data.get("adapter"):
        yield f"because  {printable(in_options(data['because']))}"
    files = f"{data['files']} file{'s' if data['files'] != 1 else ''}"
    gone = data["missing"]
    known = [len(one["homes"]) for one in gone if one["homes"]]
    part = f", of {data['tensors'] + sum(known):,} in {gone[0]['num_shards']}" if known else ""
    yield f"tensors  {data['tensors']:,} in {files}{part}"
    active = f", {data['active_parameters']:,} active for a token" if data["active_parameters"] else ""
    yield f"weights  {data['parameters']:,} parameters{active}"
    types = ", ".join(f"{dtypes.DTYPES[code].label} {format_nbytes(n)}" for code, n in data["dtypes"].items())
    bits = f", {data['bits_per_weight']:g} bits a weight" if data["bits_per_weight"] else ""
    yield f"bytes    {format_nbytes(data['nbytes'])} ({types}){bits}" if types else "bytes    0"
    if data["quantization"]:
        shown = ", ".join(f"{name} ({number:,} weights)" for name, number in data["quantization"].items())
        yield f"scheme   {shown}"
    if "adapter" in data:
        yield from (f"{word:8} {said}" for word, said in adapter_facts(data["adapter"]))
    said = {key: text for key, text in data["metadata"].items() if (key, text) != ("format", "pt")}  # all files say so
    if said:
        yield "metadata " + ", ".join(f"{printable(key)}={printable(_cut(text))}" for key, text in said.items())
    if len(data["shards"]) > 1:
        yield from _shard_lines(data["shards"])
    for sentence in data["irregular"]:
        yield f"uneven   {sentence}"
    for remark in data["remarks"]:
        yield f"note     {printable(in_options(remark))}"


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _shard_lines(shards: list[dict[str, Any]]) -> Iterator[str]:
    for number, shard in enumerate(shards[:MAX_SHARDS]):
        start = "shards  " if number == 0 else "        "
        yield f"{start} {printable(shard['name'])}  {shard['tensors']:,} tensors  {format_nbytes(shard['nbytes'])}"
    if len(shards) > MAX_SHARDS:
        sizes = [shard["nbytes"] for shard in shards[MAX_SHARDS:]]
        yield (f"         … and {len(sizes)} more of {format_nbytes(min(sizes))} to {format_nbytes(max(sizes))}")

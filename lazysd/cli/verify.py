"""Prove that DST is SRC in another layout, bit for bit, a tile at a time."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..graph.node import format_nbytes
from ..opening import open as open_checkpoint
from .common import CHECK_FAILED, add_filters, add_json, add_verbosity, count, emit, opened, wants_progress

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..execute.compare import Comparison

MAX_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dst", metavar="DST", help="the checkpoint to check")
    parser.add_argument("--against", metavar="SRC", required=True, help="the checkpoint it was made from")
    parser.add_argument("--from", dest="source", metavar="LAYOUT", help="layout of SRC, if detection should not decide")
    parser.add_argument("--to", metavar="LAYOUT", help="layout of DST, if detection should not decide")
    parser.add_argument("--num-experts", type=count, metavar="E", help="for files without a config.json")
    parser.add_argument("--workers", type=count, metavar="N", help="threads (default: one a CPU)")
    add_filters(parser)
    add_json(parser)
    add_verbosity(parser)


def run(args: argparse.Namespace) -> int:
    with opened(args.against, args) as source, open_checkpoint(args.dst) as dst:
        to = args.to or dst.layout
        config = dst.config or source.config
        if args.num_experts:
            config = {**(config or {}), "num_experts": args.num_experts}
        same = to is None or (to == source.layout and not args.source)
        expected = source if same else source.convert(str(to), source=args.source, config=config)
        comparison = check(args.dst, expected, args)
        emit(args, describe(comparison, args.dst, args.against), comparison.as_dict())
    return 0 if comparison.equal else CHECK_FAILED


def check(dst: str, expected: Checkpoint, args: argparse.Namespace) -> Comparison:
    """Compare the checkpoint at `dst` with the tensors it should hold."""
    from ..execute.compare import compare
    from ..execute.progress import reporter

    with open_checkpoint(dst, io="pread") as found, reporter(wants_progress(args)) as report:
        return compare(found, expected, ("DST", "SRC"), args.workers, report)


def describe(comparison: Comparison, dst: str, against: str) -> str:
    """The result for people: one line, then the first differences."""
    nbytes = format_nbytes(comparison.compared_nbytes)
    if comparison.equal:
        return f"verified: {dst} equals {against}, {comparison.num_equal} tensors, {nbytes}, bit for bit"
    shown = comparison.differences[:MAX_SHOWN]
    lines = [f"  {found.key}: {found.kind}: {found.detail}" for found in shown]
    if len(comparison.differences) > len(shown):
        lines.append(f"  … and {len(comparison.differences) - len(shown)} more")
    head = f"DIFFERENT: {len(comparison.differences)} tensors of {dst} differ from {against}, "
    return "\n".join([head + f"{comparison.num_equal} are equal", *lines])

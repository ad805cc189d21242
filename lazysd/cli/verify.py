"""Prove that DST is SRC in another layout, bit for bit, a tile at a time."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING

from .. import layouts
from ..display.text import printable
from ..opening import open as open_checkpoint
from ..sizes import format_nbytes
from .common import (
    CHECK_FAILED,
    add_adapter_numbers,
    add_filters,
    add_json,
    add_verbosity,
    count,
    emit,
    opened,
    stated,
    wants_progress,
)

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..comparison import Comparison

MAX_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dst", metavar="DST", help="the checkpoint to check")
    parser.add_argument("--against", metavar="SRC", required=True, help="the checkpoint it was made from")
    parser.add_argument("--from", dest="source", metavar="LAYOUT", help="layout of SRC, if detection should not decide")
    parser.add_argument("--to", metavar="LAYOUT", help="layout of DST, if detection should not decide")
    add_adapter_numbers(parser)
    parser.add_argument("--merge-rank", action="store_true", help="DST was converted with --merge-rank")
    parser.add_argument("--workers", type=count, metavar="N", help="threads (default: one a CPU)")
    add_filters(parser)
    add_json(parser)
    add_verbosity(parser)


def run(args: argparse.Namespace) -> int:
    with opened(args.against, args) as source, open_checkpoint(args.dst, follow_links=args.follow_links) as dst:
        to = args.to or dst.layout
        given = stated(args)
        config = {**(dst.config or source.config or {}), **given} or None
        if to is None or (not args.source and not args.merge_rank and to == source.layout):
            expected, made = source, ""
        else:
            expected = source.convert(to, source=args.source, config=config, merge_rank=args.merge_rank)
            made = f" as layout {expected.layout}"
        family = None if expected is source else expected.family
        comparison = check(args.dst, in_layout(expected, to, family), args, to)
        emit(args, describe(comparison, args.dst, f"{printable(args.against)}{made}"), comparison.as_dict())
    return 0 if comparison.equal else CHECK_FAILED


def check(dst: str, expected: Checkpoint, args: argparse.Namespace, layout: str | None = None) -> Comparison:
    """Compare the checkpoint at `dst` with what it should hold: tensors, and what an adapter's files say of them."""
    from ..comparison import compare, compare_adapters
    from ..save.progress import reporter

    names = ("DST", "SRC")
    with open_checkpoint(dst, "pread", args.follow_links) as found, reporter(wants_progress(args), "verify") as report:
        comparison = compare(found, expected, names, args.workers, report)
        compare_adapters(comparison, in_layout(found, layout or expected.layout, expected.family), expected, names)
    return comparison


def in_layout(checkpoint: Checkpoint, layout: str | None, family: str | None) -> Checkpoint:
    """The checkpoint with its layout stated, which evidence may not show; as it is where nothing is known of it."""
    if layout is None or checkpoint.adapter is None:
        return checkpoint
    found = layouts.get(layout, family)
    return checkpoint.like(dict(checkpoint), layout=found.name, family=found.family)


def describe(comparison: Comparison, dst: str, against: str) -> str:
    """The result for people: what was compared with what, then the first differences."""
    shown = printable(dst)
    nbytes = format_nbytes(comparison.compared_nbytes)
    if comparison.equal:
        head = f"verified: {shown} holds {against}, {comparison.num_equal} tensors, {nbytes}, bit for bit"
    else:
        head = (
            f"DIFFERENT: {shown} does not hold {against}: {count_of(comparison)}, "
            f"{comparison.num_equal} tensors are equal"
        )
    return "\n".join([head, *details(comparison)])


def count_of(comparison: Comparison) -> str:
    """How many differences of which kind."""
    kinds = Counter(difference.kind for difference in comparison.differences)
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def details(comparison: Comparison) -> list[str]:
    """A line for each of the first differences, and one for everything that could not be compared."""
    shown = comparison.differences[:MAX_SHOWN]
    lines = [f"  {printable(found.key)}: {found.kind}: {printable(found.detail)}" for found in shown]
    if len(comparison.differences) > len(shown):
        lines.append(f"  … and {len(comparison.differences) - len(shown)} more (all with --json)")
    return lines + [f"  not compared: {what}" for what in comparison.unknown]

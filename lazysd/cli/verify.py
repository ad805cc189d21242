"""Check a checkpoint against its own checksums, or prove that it holds another one, bit for bit, in any layout.

Where DST has other floating-point types than SRC, it is compared with SRC cast to them, and the result says so.
Without --against, every file beside DST's manifest is read, and each damaged tensor, header and file is named; of a
model in the hub cache, or below `hf download --local-dir`, every file is compared with its etag, a checksum.

Examples:
  lazysd verify Qwen3-30B-A3B-nemo
  lazysd verify Qwen/Qwen3-30B-A3B
  lazysd verify Qwen3-30B-A3B-nemo --against Qwen3-30B-A3B
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..casting import cast_like
from ..errors import LayoutError
from ..opening import open as open_checkpoint
from ..sizes import format_nbytes
from ..stores.strict_json import printable
from .common import (
    CHECK_FAILED,
    add_adapter_numbers,
    add_filters,
    add_json,
    add_reading,
    add_verbosity,
    emit,
    in_family,
    opened,
    progress,
    stated,
)

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..comparison import Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dst", metavar="DST", help="the checkpoint to check")
    parser.add_argument(
        "--against", metavar="SRC", help="the checkpoint it was made from (default: the checksums beside DST itself)"
    )
    parser.add_argument("--from", dest="source", metavar="LAYOUT", help="layout of SRC, if detection should not decide")
    parser.add_argument("--to", metavar="LAYOUT", help="layout of DST, if detection should not decide")
    add_adapter_numbers(parser)
    parser.add_argument("--merge-rank", action="store_true", help="DST was converted with --merge-rank")
    add_reading(parser)
    add_filters(parser)
    add_json(parser)
    add_verbosity(parser)


def run(args: argparse.Namespace) -> int:
    if args.against is None:
        return alone(args)
    with (
        opened(args.against, args) as source,
        in_family(open_checkpoint(args.dst, follow_links=args.follow_links, max_memory=args.max_memory), args) as dst,
    ):
        from ..comparing import in_layout, layout_of

        to = args.to or layout_of(dst)
        given = stated(args)
        config = {**(dst.config or source.config or {}), **given} or None
        if to is None or (not args.source and not args.merge_rank and to == layout_of(source)):
            expected, made = source, ""
        else:
            expected = source.convert(to, source=args.source, config=config, merge_rank=args.merge_rank)
            made = f" as layout {expected.layout}"
        family = None if expected is source else expected.family
        expected, casts = cast_like(in_layout(expected, to, family), dst)
        made += "".join(f", {what} ({count} tensors)" for what, count in casts.items())
        comparison = check(args.dst, expected, args, to)
        against = f"{printable(args.against)}{made}"
        emit(
            args,
            lambda: describe(comparison, args.dst, against),
            lambda: comparison.outline() | {"casts": casts},
        )
    return 0 if comparison.equal else CHECK_FAILED


def alone(args: argparse.Namespace) -> int:
    """DST against its own manifest; what came from the hub against the etags of its files."""
    from ..checking import check_folder
    from ..etags import check_snapshot, snapshot_of

    if args.include or args.exclude or args.source or args.to or args.merge_rank:
        raise LayoutError("--include, --exclude, --from, --to and --merge-rank need --against SRC to compare with")
    with progress(args) as report:
        if snapshot_of(args.dst) is None:
            found = check_folder(args.dst, args.workers, report, args.max_memory)
        else:
            found = check_snapshot(args.dst, args.workers, report, args.max_memory)
    emit(args, lambda: str(found), found.as_dict)
    return 0 if found.sound else CHECK_FAILED


def check(dst: str, expected: Checkpoint, args: argparse.Namespace, layout: str | None = None) -> Comparison:
    """Compare the checkpoint at `dst` with what it should hold: tensors, and what an adapter's files say of them."""
    from ..comparing import in_layout
    from ..comparison import compare, compare_adapters

    names = ("DST", "SRC")
    with open_checkpoint(dst, "pread", args.follow_links) as found, progress(args, "verify") as report:
        comparison = compare(found, expected, names, args.workers, report, max_memory=args.max_memory)
        compare_adapters(comparison, in_layout(found, layout or expected.layout, expected.family), expected, names)
    return comparison


def describe(comparison: Comparison, dst: str, against: str) -> str:
    """The result for people: what was compared with what, then the first differences."""
    shown = printable(dst)
    nbytes = format_nbytes(comparison.compared_nbytes)
    if comparison.equal:
        head = f"verified: {shown} holds {against}, {comparison.num_equal} tensors, {nbytes}, bit for bit"
    else:
        head = f"DIFFERENT: {shown} does not hold {against}: {comparison.headline()}"
    return "\n".join([head, *comparison.details()])

"""Prove that DST is SRC in another layout, bit for bit, a tile at a time."""

from __future__ import annotations

import argparse
from math import isclose
from typing import TYPE_CHECKING

from .. import layouts
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
    with opened(args.against, args) as source, open_checkpoint(args.dst) as dst:
        to = args.to or dst.layout
        given = stated(args)
        config = {**(dst.config or source.config or {}), **given} or None
        if to is None or (not args.source and not args.merge_rank and to == source.layout):
            expected = source
        else:
            expected = source.convert(to, source=args.source, config=config, merge_rank=args.merge_rank)
        comparison = check(args.dst, expected, args)
        if not (args.include or args.exclude):
            family = None if expected is source else expected.family
            add_scales(comparison, in_layout(dst, to, family), in_layout(expected, to, family), ("DST", "SRC"))
        emit(args, describe(comparison, args.dst, args.against), comparison.as_dict())
    return 0 if comparison.equal else CHECK_FAILED


def check(dst: str, expected: Checkpoint, args: argparse.Namespace) -> Comparison:
    """Compare the checkpoint at `dst` with the tensors it should hold."""
    from ..comparison import compare
    from ..save.progress import reporter

    with open_checkpoint(dst, io="pread") as found, reporter(wants_progress(args)) as report:
        return compare(found, expected, ("DST", "SRC"), args.workers, report)


def in_layout(checkpoint: Checkpoint, layout: str | None, family: str | None) -> Checkpoint:
    """The checkpoint with its layout stated, which evidence may not show; as it is where nothing is known of it."""
    if layout is None or checkpoint.adapter is None:
        return checkpoint
    found = layouts.get(layout, family)
    return checkpoint.like(dict(checkpoint), layout=found.name, family=found.family)


def add_scales(comparison: Comparison, ours: Checkpoint, theirs: Checkpoint, names: tuple[str, str]) -> None:
    """Adapters with the same factors are not the same where adapter_config.json scales their product otherwise."""
    from ..comparison import Difference
    from ..merging import scales

    if ours.adapter is None or theirs.adapter is None:
        return
    here, there = scales(ours), scales(theirs)
    for name in sorted(here.keys() & there.keys()):
        if not isclose(here[name], there[name], rel_tol=1e-9):
            detail = (
                f"{names[0]} scales its LoRA by {here[name]:g}, {names[1]} by {there[name]:g} (adapter_config.json)"
            )
            comparison.differences.append(Difference(name, "scale", detail))


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

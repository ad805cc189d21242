"""Compare two checkpoints: what is equal, and how far the rest has moved, across layouts and dtypes.

Where the layouts differ, B is compared as it would look in A's layout. Rows fold the experts of a layer; those that
moved most come first. "relative" is the norm of B - A over the norm of A.

Examples:
  lazysd diff base finetune
  lazysd diff base finetune --include '*.experts.*' --json
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import LayoutError
from .common import (
    CHECK_FAILED,
    add_filters,
    add_json,
    add_reading,
    add_verbosity,
    count,
    emit,
    opened,
    progress,
    stated,
    width,
)

if TYPE_CHECKING:
    from ..comparison import Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a checkpoint")
    parser.add_argument("b", metavar="B", help="another checkpoint")
    parser.add_argument("--no-values", action="store_true", help="compare keys, shapes and dtypes only; reads no data")
    parser.add_argument("--stat", action="store_true", help="a bar a row, and no list of differences")
    parser.add_argument(
        "--tolerance", type=tolerance, default=0.0, metavar="T", help="elements within T of each other count as equal"
    )
    parser.add_argument(
        "--sort", default="relative", choices=("relative", "max", "changed", "cosine", "name"), help="order of the rows"
    )
    parser.add_argument("--top", type=count, default=20, metavar="N", help="rows to show (default: 20)")
    parser.add_argument("--from", dest="source", metavar="LAYOUT", help="layout of B, if detection should not decide")
    parser.add_argument("--to", metavar="LAYOUT", help="layout of A, if detection should not decide")
    parser.add_argument("--num-experts", type=count, metavar="E", help="for files without a config.json")
    add_reading(parser)
    add_filters(parser)
    add_json(parser)
    add_verbosity(parser)


def tolerance(text: str) -> float:
    """An argparse type: a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def run(args: argparse.Namespace) -> int:
    if args.no_values and (args.stat or args.tolerance):
        raise LayoutError("--stat and --tolerance need the values, which --no-values does not look at")
    from ..comparing import compare

    with (
        opened(args.a, args, partial=True) as a,
        opened(args.b, args, partial=True) as b,
        progress(args) as report,
    ):
        comparison = compare(
            a,
            b,
            to=args.to,
            source=args.source,
            config=stated(args),
            values=not args.no_values,
            tolerance=args.tolerance,
            max_memory=args.max_memory,
            workers=args.workers,
            progress=report,
        )
    emit(args, lambda: _text(comparison, args), comparison.outline)
    return 0 if comparison.equal else CHECK_FAILED


def _text(comparison: Comparison, args: argparse.Namespace) -> str:
    """The headline, what moved, and what differs."""
    head = comparison.headline()
    if args.tolerance:
        head += f"; elements within {args.tolerance:g} of each other count as equal"
    lines = [
        head,
        comparison.table(args.sort, args.top, args.stat, width()),
        *([] if args.stat else comparison.details()),
    ]
    return "\n".join(line for line in lines if line)

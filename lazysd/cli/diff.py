"""Compare two checkpoints: keys, shapes, dtypes, values; across layouts.

Where the layouts differ, B is compared as it would look in A's layout.
"""

from __future__ import annotations

import argparse

from .. import layouts
from .common import CHECK_FAILED, add_filters, add_json, add_verbosity, count, emit, opened, stated, wants_progress
from .verify import count_of, details, in_layout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a checkpoint")
    parser.add_argument("b", metavar="B", help="another checkpoint")
    parser.add_argument("--no-values", action="store_true", help="compare keys, shapes and dtypes only; reads no data")
    parser.add_argument("--from", dest="source", metavar="LAYOUT", help="layout of B, if detection should not decide")
    parser.add_argument("--to", metavar="LAYOUT", help="layout of A, if detection should not decide")
    parser.add_argument("--num-experts", type=count, metavar="E", help="for files without a config.json")
    parser.add_argument("--workers", type=count, metavar="N", help="threads (default: one a CPU)")
    add_filters(parser)
    add_json(parser)
    add_verbosity(parser)


def run(args: argparse.Namespace) -> int:
    from ..comparison import compare, compare_adapters
    from ..save.progress import reporter

    with opened(args.a, args) as a, opened(args.b, args) as b, reporter(wants_progress(args), "diff") as report:
        layout, other = args.to or a.layout, args.source or b.layout
        if layout and other and layouts.resolve(layout) != layouts.resolve(other):
            config = {**(a.config or b.config or {}), **stated(args)} or None
            b = b.convert(layout, source=args.source, config=config)
        comparison = compare(a, b, ("A", "B"), args.workers, report, values=not args.no_values)
        first, second = (in_layout(side, layout, b.facts.family) for side in (a, b))
        compare_adapters(comparison, first, second, ("A", "B"))
    differs = count_of(comparison)
    if comparison.values:
        head = f"{comparison.num_equal} tensors equal" + (f", {differs}" if differs else "")
    else:
        head = f"{comparison.num_equal} tensors of equal shape and dtype" + (f", {differs}" if differs else "")
        head += "; their values were not looked at (--no-values)"
    emit(args, "\n".join([head, *details(comparison)]), comparison.as_dict())
    return 0 if comparison.equal else CHECK_FAILED

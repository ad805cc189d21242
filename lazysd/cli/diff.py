"""Compare two checkpoints: keys, shapes, dtypes, values; across layouts.

Where the layouts differ, B is compared as it would look in A's layout.
"""

from __future__ import annotations

import argparse

from .common import CHECK_FAILED, add_filters, add_json, add_verbosity, count, emit, opened, wants_progress
from .verify import MAX_SHOWN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a checkpoint")
    parser.add_argument("b", metavar="B", help="another checkpoint")
    parser.add_argument("--no-values", action="store_true", help="compare keys, shapes and dtypes only; reads no data")
    parser.add_argument("--num-experts", type=count, metavar="E", help="for files without a config.json")
    parser.add_argument("--workers", type=count, metavar="N", help="threads (default: one a CPU)")
    add_filters(parser)
    add_json(parser)
    add_verbosity(parser)


def run(args: argparse.Namespace) -> int:
    from ..execute.compare import compare
    from ..execute.progress import reporter

    with opened(args.a, args) as a, opened(args.b, args) as b, reporter(wants_progress(args)) as report:
        if a.layout and b.layout and a.layout != b.layout:
            config = a.config or b.config
            if args.num_experts:
                config = {**(config or {}), "num_experts": args.num_experts}
            b = b.convert(a.layout, config=config)
        comparison = compare(a, b, ("A", "B"), args.workers, report, values=not args.no_values)
    kinds: dict[str, int] = {}
    for difference in comparison.differences:
        kinds[difference.kind] = kinds.get(difference.kind, 0) + 1
    lines = [f"{comparison.num_equal} tensors equal" + "".join(f", {n} {kind}" for kind, n in kinds.items())]
    lines += [f"  {found.key}: {found.kind}: {found.detail}" for found in comparison.differences[:MAX_SHOWN]]
    if len(comparison.differences) > MAX_SHOWN:
        lines.append(f"  … and {len(comparison.differences) - MAX_SHOWN} more (all with --json)")
    emit(args, "\n".join(lines), comparison.as_dict())
    return 0 if comparison.equal else CHECK_FAILED

"""Show what the values are like: smallest, largest, mean, zeros, NaN; of one tensor quantiles and a histogram.

Every tensor is read once. KEY is a key or a glob; --check ends with 1 where there is NaN or infinity. Of more than 60
tensors, those that are alike but for numbers in their keys are one line; --keys or --top list each.

Examples:
  lazysd stats Qwen3-30B-A3B
  lazysd stats Qwen3-30B-A3B '*.layers.3.*' --check
  lazysd stats Qwen3-30B-A3B --sort absmax --top 10
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import isnan
from typing import TYPE_CHECKING, Any

from ..errors import MissingTensorError
from ..nearest import did_you_mean
from ..stores.strict_json import printable
from .common import (
    CHECK_FAILED,
    add_json,
    add_reading,
    add_source,
    add_verbosity,
    count,
    emit,
    opened,
    progress,
    width,
)

if TYPE_CHECKING:
    from ..stats import CheckpointStats

SORTS: dict[str, Callable[[Any], float]] = {
    "absmax": lambda one: one.absmax,
    "std": lambda one: one.std,
    "zeros": lambda one: one.num_zeros / max(1, one.num_elements),
    "nan": lambda one: one.num_nan + one.num_inf,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("key", metavar="KEY", nargs="?", help="a key, or a glob that keys match (default: all)")
    parser.add_argument(
        "--sort", choices=("file", *SORTS), default="file", help="order of lines, the largest first (default: file)"
    )
    parser.add_argument("--top", type=count, metavar="N", help="show at most N lines")
    parser.add_argument("--keys", action="store_true", help="a line a tensor, however many there are")
    parser.add_argument("--check", action="store_true", help="exit with 1 where there is NaN or infinity, and name it")
    add_reading(parser)
    add_json(parser)
    add_verbosity(parser)


def run(args: argparse.Namespace) -> int:
    with opened(args.checkpoint, args, partial=True) as checkpoint:
        if args.key in checkpoint:
            checkpoint = checkpoint.like({args.key: checkpoint[args.key]})
        elif args.key is not None:
            chosen = checkpoint.select(args.key)
            if not chosen:
                raise MissingTensorError(f"no key is or matches {args.key!r}{did_you_mean(args.key, checkpoint)}")
            checkpoint = chosen
        with progress(args) as report:
            found = checkpoint.stats(max_memory=args.max_memory, workers=args.workers, progress=report)
    bad = list(found.not_finite)
    emit(args, lambda: _text(found, bad, args), lambda: found.outline() | {"not_finite": bad})
    return CHECK_FAILED if args.check and bad else 0


def _text(found: CheckpointStats, bad: list[str], args: argparse.Namespace) -> str:
    """What the arguments ask for; `bad` are the keys of tensors that hold NaN or infinity."""
    from ..display.stats import MAX_ROWS

    if args.check:
        text = f"{_lines(found, bad, args.top or MAX_ROWS)}\n" if bad else ""
        text += f"{len(bad)} of {len(found)} tensors hold NaN or infinity"
    else:
        text = str(next(iter(found.values()))) if len(found) == 1 else _table(found, args)
    if found.skipped:
        text += f"\nskipped {len(found.skipped)} tensors of no real numbers: {printable(', '.join(found.skipped[:5]))}"
    return text


def _table(found: CheckpointStats, args: argparse.Namespace) -> str:
    """The lines that the arguments ask for. What is not a number stands last."""
    from ..display.stats import text_of_rows
    from ..stats import MOST_LINES

    def place(one: Any) -> tuple[bool, float]:
        return isnan(size := SORTS[args.sort](one)), -size

    if len(found) > MOST_LINES and not args.keys and args.top is None:
        rows = found.rows()
        if args.sort != "file":
            rows.sort(key=lambda row: place(row.stats))
        return text_of_rows(rows, width())
    keys = list(found)
    if args.sort != "file":
        keys.sort(key=lambda key: place(found[key]))
    return _lines(found, keys, args.top)


def _lines(found: CheckpointStats, keys: list[str], top: int | None) -> str:
    """The first tensors, a line each, and how many more there are."""
    from ..display.stats import text_of_all

    text = text_of_all(found, keys[:top], width())
    left = len(keys) - len(keys[:top])
    return f"{text}\n… and {left} more tensors" if left else text

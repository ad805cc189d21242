"""Show what the values are like: smallest, largest, mean, zeros, NaN; of one tensor quantiles and a histogram.

Every tensor is read once. KEY is a key or a glob; --check ends with 1 where there is NaN or infinity.

Examples:
  lazysd stats Qwen3-30B-A3B
  lazysd stats Qwen3-30B-A3B '*.layers.3.*' --check
"""

from __future__ import annotations

import argparse

from ..display.text import printable
from ..errors import MissingTensorError
from ..nearest import did_you_mean
from .common import CHECK_FAILED, add_json, add_reading, add_source, add_verbosity, emit, opened, wants_progress, width


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("key", metavar="KEY", nargs="?", help="a key, or a glob that keys match (default: all)")
    parser.add_argument("--check", action="store_true", help="exit with 1 where there is NaN or infinity, and name it")
    add_reading(parser)
    add_json(parser)
    add_verbosity(parser)


def run(args: argparse.Namespace) -> int:
    from ..display.stats import text_of_all

    with opened(args.checkpoint, args, partial=True) as checkpoint:
        if args.key in checkpoint:
            checkpoint = checkpoint.like({args.key: checkpoint[args.key]})
        elif args.key is not None:
            chosen = checkpoint.select(args.key)
            if not chosen:
                raise MissingTensorError(f"no key is or matches {args.key!r}{did_you_mean(args.key, checkpoint)}")
            checkpoint = chosen
        found = checkpoint.stats(max_memory=args.max_memory, workers=args.workers, progress=wants_progress(args))
    bad = found.not_finite
    if args.check:
        text = text_of_all(found, bad, width()) if bad else ""
        text += ("\n" if text else "") + f"{len(bad)} of {len(found)} tensors hold NaN or infinity"
    else:
        text = str(next(iter(found.values()))) if len(found) == 1 else text_of_all(found, width=width())
    if found.skipped:
        text += f"\nskipped {len(found.skipped)} tensors of no real numbers: {printable(', '.join(found.skipped[:5]))}"
    emit(args, text, found.as_dict() | {"not_finite": list(bad)})
    return CHECK_FAILED if args.check and bad else 0

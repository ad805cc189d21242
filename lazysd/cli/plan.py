"""Prove what a conversion would do: bytes, shards, memory, losses. Reads headers only.

Examples:
  lazysd plan Qwen3-30B-A3B --to nemo
  lazysd plan Qwen3-30B-A3B --dtype f16 --max-shard-size 2GB --json
"""

from __future__ import annotations

import argparse

from .common import add_conversion, add_json, add_limits, add_source, converted, emit, opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    add_conversion(parser)
    add_limits(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    with opened(args.checkpoint, args) as checkpoint:
        result = converted(checkpoint, args)
        plan = result.plan(args.max_shard_size, args.max_memory, args.workers, args.format)
        emit(args, str(plan), plan.as_dict())
    return 0

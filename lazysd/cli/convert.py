"""Convert a checkpoint to another layout, streaming; DST appears only when complete.

An interrupted run goes on where it stopped when the same command is run again.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from ..display.text import printable
from ..sizes import format_nbytes
from . import verify
from .common import (
    CHECK_FAILED,
    add_conversion,
    add_filters,
    add_json,
    add_limits,
    add_verbosity,
    converted,
    emit,
    opened,
    say,
    wants_progress,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", help="folder, file, index.json, dcp.save folder, or cached org/name")
    parser.add_argument("dst", metavar="DST", help="folder to make")
    add_conversion(parser)
    add_filters(parser)
    add_saving(parser)


def add_saving(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that writes a checkpoint."""
    add_limits(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--overwrite", action="store_true", help="replace DST once the new one is complete")
    parser.add_argument("--no-resume", action="store_true", help="discard an interrupted run instead of finishing it")
    parser.add_argument("--verify", action="store_true", help="read DST back and compare it with SRC, bit by bit")
    add_json(parser)
    add_verbosity(parser)


def run(args: argparse.Namespace) -> int:
    with opened(args.src, args) as checkpoint:
        say_verbose = say if args.verbose else lambda args, text: None
        say_verbose(args, f"{checkpoint!r}")
        made = f"{printable(args.src)} as layout {args.to}" + (f", cast to {args.dtype}" if args.dtype else "")
        return write(converted(checkpoint, args), args, made)


def write(result: object, args: argparse.Namespace, made: str) -> int:
    """Save a checkpoint to args.dst as the arguments say, `made` being its name in words; returns the exit code."""
    from ..checkpoint import Checkpoint

    assert isinstance(result, Checkpoint)
    if args.dry_run:
        plan = result.plan(args.max_shard_size, args.max_memory, args.workers)
        emit(args, str(plan), plan.as_dict())
        return 0
    import torch  # noqa: F401 - takes a second, which the rate below should not count

    started = time.perf_counter()
    options: dict[str, Any] = {"max_shard_size": args.max_shard_size, "max_memory": args.max_memory}
    options |= {"overwrite": args.overwrite, "resume": not args.no_resume, "progress": wants_progress(args)}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by torchrun: every rank writes its share
        from ..distributed import save, world

        plan = save(result, args.dst, workers_per_rank=args.workers, **options)
        if world().rank > 0:
            return 0
    else:
        plan = result.save(args.dst, workers=args.workers, **options)
    seconds = time.perf_counter() - started
    if plan.lossy:
        say(args, "lossy: " + "; ".join(plan.lossy))
    if result.adapter is not None and not result.is_adapter:
        say(args, "no adapter_config.json is written, for nothing states lora_alpha; state it with --lora-alpha")
    data = plan.as_dict() | {"dst": str(args.dst), "layout": result.layout, "seconds": round(seconds, 3)}
    text = (
        f"{args.dst}: {plan.num_tensors} tensors, {format_nbytes(plan.write_nbytes)} in {len(plan.shards)} "
        f"file{'s' if len(plan.shards) != 1 else ''}, layout {result.layout}, "
        f"{seconds:.1f} s, {format_nbytes(plan.write_nbytes / max(seconds, 1e-9))}/s"
    )
    code = 0
    if args.verify:
        comparison = verify.check(args.dst, result, args)
        data["verified"] = comparison.equal
        text += "\n" + verify.describe(comparison, args.dst, made)
        code = 0 if comparison.equal else CHECK_FAILED
    emit(args, text, data)
    return code

"""Convert a checkpoint to another layout, dtype, shard size or other names, streaming; DST appears only when complete.

Without --to, any architecture is cast, resharded, filtered, renamed or repacked; its layout stays. DST ending in
.safetensors is one file. An interrupted run goes on where it stopped when the same command is run again.

Examples:
  lazysd convert Qwen3-30B-A3B Qwen3-30B-A3B-nemo --to nemo
  lazysd convert Llama-3.2-1B Llama-3.2-1B-bf16 --dtype bf16 --verify
  lazysd convert gpt2 gpt2.safetensors --rename 'transformer.*=*'
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from .. import dtypes
from ..checkpoint import Checkpoint
from ..errors import LayoutError
from ..formats.base import sentence
from ..save.plan import Plan
from ..sizes import format_nbytes
from ..stores.placing import SUFFIX
from ..stores.strict_json import printable
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
    emit_done,
    opened,
    progress,
    remarked,
    say,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", help="folder, file, index.json, dcp.save folder, or cached org/name")
    parser.add_argument("dst", metavar="DST", help="folder to make, or one file where it ends in .safetensors")
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
        if args.verbose:  # looking for the layout takes a while
            for line in repr(checkpoint).splitlines():
                say(args, line)
        made = printable(args.src) + (f" as layout {args.to}" if args.to else "")
        made += ", renamed" if args.rename else ""
        made += f", cast to {dtypes.DTYPES[args.dtype].label}" if args.dtype else ""
        return write(remarked(converted(checkpoint, args), args), args, made)


def write(result: Checkpoint, args: argparse.Namespace, made: str) -> int:
    """Save a checkpoint to args.dst as the arguments say, `made` being its name in words; returns the exit code."""
    if args.dry_run:
        planned = result.plan(args.max_shard_size, args.max_memory, args.workers, args.format)
        emit(args, str(planned), planned.as_dict())
        return 0
    started = time.perf_counter()
    plan = _saved(result, args)
    if plan is None:
        return 0
    seconds = time.perf_counter() - started
    if plan.lossy:
        say(args, "lossy: " + "; ".join(plan.lossy))
    if result.adapter is not None and not result.is_adapter:
        say(args, "no adapter_config.json is written, for nothing states lora_alpha; state it with --lora-alpha")
    layout = layout_of(result)
    data = plan.as_dict() | {"dst": str(args.dst), "layout": layout, "seconds": round(seconds, 3)}
    text = (
        f"{args.dst}: {plan.num_tensors} tensors, {format_nbytes(plan.write_nbytes)} in {len(plan.shards)} "
        f"file{'s' if len(plan.shards) != 1 else ''}, {f'layout {layout}, ' if layout else ''}"
        f"{seconds:.1f} s, {format_nbytes(plan.write_nbytes / max(seconds, 1e-9))}/s"
    )
    code = 0
    beside = {file.name for file in result.facts.side_files} | {*result.facts.json_files}
    if beside and Path(args.dst).suffix == SUFFIX:
        say(args, f"not in {args.dst}, which is one file, {sentence(len(beside), 'file', sorted(beside))}")
    if args.verify:
        comparison = verify.check(args.dst, result, args)
        data["verified"] = comparison.equal
        text += "\n" + verify.describe(comparison, args.dst, made)
        code = 0 if comparison.equal else CHECK_FAILED
    emit_done(args, text, data)
    return code


def _saved(result: Checkpoint, args: argparse.Namespace) -> Plan | None:
    """Save; the plan that was carried out. None on ranks of torchrun that have nothing to say of it."""
    options: dict[str, Any] = {"max_shard_size": args.max_shard_size, "max_memory": args.max_memory}
    options |= {"format": args.format, "overwrite": args.overwrite, "resume": not args.no_resume}
    with progress(args) as report:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return result.save(args.dst, workers=args.workers, progress=report, **options)
        from ..distributed import save, world  # started by torchrun: every rank writes its share

        plan = save(result, args.dst, workers_per_rank=args.workers, progress=report, **options)
        return plan if world().rank == 0 else None


def layout_of(checkpoint: Checkpoint) -> str | None:
    """The layout's name; None where no table knows the keys, or several do."""
    try:
        return checkpoint.layout
    except LayoutError:
        return None

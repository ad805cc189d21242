"""What commands share: arguments, opening, output on the right streams."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from itertools import islice
from math import isfinite
from typing import Any

from .. import dtypes
from ..casting import cast_checkpoint
from ..checkpoint import Checkpoint
from ..errors import LayoutError
from ..opening import open as open_checkpoint
from ..quantization import dequantize, quantize
from ..renaming import rename_keys
from ..sizes import parse_size
from ..stores.strict_json import printable

_PARTS = 4096  # of JSON that are written at a time
CHECK_FAILED = 1  # exit code of verify and diff when what they check does not hold


class UsageError(Exception):
    """Options that do not go together."""


def size(text: str) -> int:
    """An argparse type: 5GB, 5GiB, 1000."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def dtype(text: str) -> str:
    """An argparse type: bf16, float32, …; the safetensors code."""
    try:
        return dtypes.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def add_source(parser: argparse.ArgumentParser, name: str = "checkpoint") -> None:
    """The positional checkpoint and which of its keys count."""
    parser.add_argument(name, metavar=name.upper(), help="folder, .safetensors file, index.json, or cached org/name")
    add_filters(parser)


def add_opening(parser: argparse.ArgumentParser) -> None:
    """--follow-links, --family and --layouts."""
    parser.add_argument("--follow-links", action="store_true", help="also follow links out of the checkpoint's folder")
    parser.add_argument(
        "--family", metavar="NAME", help="model family, where config.json does not say (see `lazysd layouts`)"
    )
    add_tables(parser)


def add_tables(parser: argparse.ArgumentParser) -> None:
    """--layouts: tables of one's own."""
    parser.add_argument(
        "--layouts", metavar="FILE", action="append", default=[], help="tables of your own, .toml or .py; repeatable"
    )


def in_family(checkpoint: Checkpoint, args: argparse.Namespace) -> Checkpoint:
    """The checkpoint as one of the family that --family states."""
    return checkpoint.like(checkpoint, family=args.family) if args.family else checkpoint


def add_filters(parser: argparse.ArgumentParser) -> None:
    """--include and --exclude, on the keys of the source; and how it is opened."""
    add_opening(parser)
    parser.add_argument("--include", metavar="GLOB", action="append", default=[], help="only matching keys; repeatable")
    parser.add_argument("--exclude", metavar="GLOB", action="append", default=[], help="no matching keys; repeatable")


def pair(text: str) -> tuple[str, str]:
    """An argparse type: OLD=NEW."""
    old, sign, new = text.partition("=")
    if not (old and sign and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW, e.g. model.*=transformer.*")
    return old, new


def add_conversion(parser: argparse.ArgumentParser) -> None:
    """What to convert to, from what, and the numbers a bare file does not state."""
    parser.add_argument("--to", metavar="LAYOUT", help="target layout (see `lazysd layouts`); without it, none changes")
    parser.add_argument("--from", dest="source", metavar="LAYOUT", help="source layout, if detection should not decide")
    parser.add_argument(
        "--dtype",
        type=dtype,
        metavar="DTYPE",
        help="cast floating-point tensors, e.g. bf16; quantised weights are decoded",
    )
    parser.add_argument(
        "--cast-all",
        action="store_true",
        help="with --dtype: cast also what stays otherwise, correction biases of routers and vectors stored wider",
    )
    parser.add_argument(
        "--rename",
        type=pair,
        metavar="OLD=NEW",
        action="append",
        default=[],
        help="other names for keys of SRC, e.g. 'model.*=transformer.*'; repeatable, the first that fits counts",
    )
    parser.add_argument(
        "--quantize",
        metavar="SCHEME",
        help="encode weights to few bits: fp8-blocks, mxfp4, mxfp4-compressed, nvfp4-modelopt, nvfp4-compressed",
    )
    add_adapter_numbers(parser)
    parser.add_argument(
        "--merge-rank",
        action="store_true",
        help="per-expert LoRA whose gate and up differ: keep both, exactly, at twice the rank",
    )


def add_adapter_numbers(parser: argparse.ArgumentParser) -> None:
    """Numbers that JSON files state, for checkpoints and adapters that come without them."""
    parser.add_argument("--num-experts", type=count, metavar="E", help="for files without a config.json")
    parser.add_argument("--lora-alpha", type=alpha, metavar="ALPHA", help="for adapters without an adapter_config.json")


def alpha(text: str) -> float:
    """An argparse type: a finite number, whole where it is written so."""
    try:
        value = int(text) if text.lstrip("-").isdecimal() else float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def stated(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line states in place of JSON files."""
    given = {"num_experts": args.num_experts, "lora_alpha": getattr(args, "lora_alpha", None)}
    return {name: value for name, value in given.items() if value is not None}


def add_limits(parser: argparse.ArgumentParser) -> None:
    """How a save may use disk, memory and CPUs."""
    parser.add_argument("--max-shard-size", type=size, default="5GB", metavar="SIZE", help="per file (default: 5GB)")
    parser.add_argument(
        "--max-memory", type=size, default="128MB", metavar="SIZE", help="growth of the process (default: 128MB)"
    )
    parser.add_argument("--workers", type=count, metavar="N", help="threads (default: one a CPU, as memory allows)")
    parser.add_argument(
        "--format", choices=("safetensors", "dcp"), default="safetensors",
        help="what to write; dcp: a folder that torch.distributed.checkpoint loads",
    )  # fmt: skip


def add_reading(parser: argparse.ArgumentParser) -> None:
    """How reading tile by tile may use memory and CPUs."""
    parser.add_argument("--max-memory", type=size, default="128MB", metavar="SIZE", help="for tiles (default: 128MB)")
    parser.add_argument("--workers", type=count, metavar="N", help="threads (default: one a CPU, as memory allows)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def opened_whole(path: str, args: argparse.Namespace, partial: bool = False) -> Checkpoint:
    """The checkpoint at `path`; what there is to say about it goes to stderr."""
    room = getattr(args, "max_memory", None)
    found = open_checkpoint(path, follow_links=args.follow_links, partial=partial, max_memory=room)
    return remarked(in_family(found, args), args)


def remarked(checkpoint: Checkpoint, args: argparse.Namespace) -> Checkpoint:
    """The checkpoint, once what there is to say about it, and has not been said, is said on stderr."""
    said: frozenset[str] = getattr(args, "said", frozenset())
    for remark in checkpoint.remarks:
        if remark not in said:
            say(args, remark)
    args.said = said | {*checkpoint.remarks}
    return checkpoint


def opened(path: str, args: argparse.Namespace, partial: bool = False) -> Checkpoint:
    """The checkpoint at `path`, filtered by --include and --exclude; for looking, also a part of one."""
    checkpoint = opened_whole(path, args, partial)
    if args.include:
        checkpoint = checkpoint.select(*args.include)
    if args.exclude:
        checkpoint = checkpoint.drop(*args.exclude)
    if not checkpoint and (args.include or args.exclude):
        raise LayoutError(f"--include and --exclude leave no tensor of {path}; `lazysd inspect` lists the keys")
    return checkpoint


def converted(checkpoint: Checkpoint, args: argparse.Namespace) -> Checkpoint:
    """The checkpoint in the names, layout and dtype asked for; quantised weights become plain weights of it."""
    if args.cast_all and not args.dtype:
        raise UsageError("--cast-all says which tensors --dtype casts; give --dtype too")
    if (args.source or args.merge_rank) and not args.to:
        raise UsageError(f"{'--from' if args.source else '--merge-rank'} belongs to a conversion; give --to too")
    if args.rename:
        checkpoint = rename_keys(checkpoint, args.rename)
    if args.dtype:
        checkpoint = dequantize(checkpoint, args.dtype)
    if args.to:
        given = stated(args)
        config = {**(checkpoint.config or {}), **given} if given else checkpoint.config
        checkpoint = checkpoint.convert(args.to, source=args.source, config=config, merge_rank=args.merge_rank)
    if args.dtype:
        checkpoint = cast_checkpoint(checkpoint, args.dtype, args.cast_all)
    return quantize(checkpoint, args.quantize) if args.quantize else checkpoint


def width() -> int | None:
    """Characters of a line of the terminal; None where nobody looks at one, so that nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def emit(args: argparse.Namespace, text: str | Callable[[], str], data: Any) -> None:
    """The result, on stdout: JSON where asked for, else text.

    What a function makes is made only if it is asked for; of functions within `data`, when the JSON has come to them.
    """
    if not getattr(args, "json", False):
        print(in_lines(text if isinstance(text, str) else text()))
        return
    parts = json.JSONEncoder(indent=2, default=lambda make: make()).iterencode(data)
    while part := "".join(islice(parts, _PARTS)):
        print(part, end="")
    print()


def in_lines(text: str) -> str:
    """`text` with its line breaks, and nothing else that a terminal could act on."""
    return "\n".join(map(printable, text.split("\n")))


def say(args: argparse.Namespace, text: str) -> None:
    """A remark for people, on stderr, unless --quiet."""
    if not getattr(args, "quiet", False):
        to_stderr(printable(text))


def to_stderr(text: str) -> None:
    """A line on stderr; where that is closed or full, nobody reads it, and that is no failure."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(in_lines(text), file=sys.stderr, flush=True)


def emit_done(args: argparse.Namespace, text: str, data: Any) -> None:
    """The result of work that is done: that nobody can take it any more is said, and is no failure of the work."""
    try:
        emit(args, text, data)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        drop_stdout()
        say(args, f"done, but the result could not be printed: {getattr(error, 'strerror', None) or error}")


def drop_stdout() -> None:
    """Nobody can take what is still to be printed; without this, Python complains once more at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """-q, -v and --no-progress."""
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no remarks")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    parser.add_argument("--no-progress", action="store_true", help="no bar, and no lines where stderr is no terminal")


def progress(args: argparse.Namespace, label: str | None = None) -> AbstractContextManager[Callable[[int, int], None]]:
    """A bar where someone looks, lines in a log (save.progress knows); nothing where it was not wanted.

    It is called what the user typed, if `label` says nothing else.
    """
    from ..save.progress import reporter

    return reporter(not (args.quiet or args.no_progress), label or args.command)

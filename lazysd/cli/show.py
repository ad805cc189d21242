"""Show one tensor: what it is, what reading it would cost, and its values; a slice of it, in any layout.

Example: lazysd show CKPT model.layers.0.mlp.experts.gate_and_up_projs --to nemo --slice "7, :4, ::256"
"""

from __future__ import annotations

import argparse
import math
import re
from typing import Any

from ..display.text import printable
from ..errors import LayoutError
from ..sizes import format_nbytes
from .common import add_conversion, add_json, add_source, converted, emit, opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("key", metavar="KEY", help="the tensor")
    parser.add_argument("--slice", type=parse_slice, default=(), metavar="SLICE", help='as in Python: "7, :4, ::256"')
    parser.add_argument("--no-values", action="store_true", help="read no data")
    add_conversion(parser)
    add_json(parser)


def parse_slice(text: str) -> tuple[Any, ...]:
    """ "7, :4, ::2, ..." as a subscript."""
    keys: list[Any] = []
    for part in text.strip().strip("[]").split(","):
        word = part.strip()
        if word == "...":
            keys.append(Ellipsis)
        elif re.fullmatch(r"-?\d+", word):
            keys.append(int(word))
        elif re.fullmatch(r"(-?\d*):(-?\d*)(:\d*)?", word):
            keys.append(slice(*(int(number) if number else None for number in word.split(":"))))
        else:
            raise argparse.ArgumentTypeError(f"cannot read {word!r}; a slice looks like 7, :4, ::256 or ...")
    return tuple(keys)


def _plain(values: Any) -> Any:
    """Values as JSON has them: what is not finite ("nan", "inf", "-inf") becomes text."""
    if isinstance(values, list):
        return [_plain(value) for value in values]
    if isinstance(values, complex):
        return [_plain(values.real), _plain(values.imag)]
    return str(values) if isinstance(values, float) and not math.isfinite(values) else values


def run(args: argparse.Namespace) -> int:
    with opened(args.checkpoint, args) as checkpoint:
        tensor = converted(checkpoint, args)[args.key]
        try:
            tensor = tensor[args.slice] if args.slice else tensor
        except (IndexError, ValueError) as error:
            raise LayoutError(f"--slice does not fit {tensor!r}: {error}") from error
        reads = tensor.reads()
        data: dict[str, Any] = {
            "key": args.key,
            "dtype": tensor.code,
            "shape": list(tensor.dims),
            "nbytes": tensor.nbytes,
            "reads": [{"file": path, "offset": offset, "nbytes": nbytes} for path, offset, nbytes in reads],
        }
        total = sum(nbytes for _, _, nbytes in reads)
        ranges = f"{len(reads)} range{'s' if len(reads) != 1 else ''}"
        text = f"{printable(args.key)}\n{tensor!r}\nreads {format_nbytes(total)} in {ranges}"
        if not args.no_values:
            values = tensor.materialize()
            text += f"\n{values}"
            if args.json:
                data["values"] = _plain(values.tolist())
        emit(args, text, data)
    return 0

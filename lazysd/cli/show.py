"""Show one tensor: what it is, what reading it would cost, and its values; a slice of it, in any layout.

Examples:
  lazysd show Qwen3-30B-A3B model.norm.weight --stats
  lazysd show Qwen3-30B-A3B model.layers.0.mlp.experts.gate_and_up_projs --to nemo --slice '3, :2, ::8'
"""

from __future__ import annotations

import argparse
import math
import re
from typing import Any

from .. import dtypes, layouts
from ..checkpoint import Checkpoint
from ..display.values import corners_text, picks
from ..errors import LayoutError, LazysdError, MissingTensorError
from ..sizes import format_nbytes
from ..stores.strict_json import printable
from ..tensor.lazy import LazyTensor
from .common import UsageError, add_conversion, add_json, add_source, converted, emit, opened

MAX_JSON = 10_000  # values that --json prints unasked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("key", metavar="KEY", help="the tensor")
    parser.add_argument("--slice", type=parse_slice, default=(), metavar="SLICE", help='as in Python: "7, :4, ::256"')
    parser.add_argument("--no-values", action="store_true", help="read no data")
    parser.add_argument("--stats", action="store_true", help="instead of values: min, max, mean, quantiles, histogram")
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
    if args.stats and args.no_values:
        raise UsageError("--stats reads the values, which --no-values does not look at")
    with opened(args.checkpoint, args, partial=True) as checkpoint:
        whole = _tensor(converted(checkpoint, args), args)
        try:
            tensor = whole[args.slice] if args.slice else whole
        except (IndexError, ValueError) as error:
            raise LayoutError(f"--slice does not fit {whole!r}: {error}") from error
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
        if args.stats:
            found = tensor.stats()
            data["stats"], text = found.as_dict(), f"{text}\n\n{found}"
        elif args.json and not args.no_values:
            if tensor.numel() > MAX_JSON and not args.slice:
                data["values"] = None
                data["values_left_out"] = f"{tensor.numel()} values; ask for some with --slice"
            else:
                data["values"] = _plain(_values(tensor).tolist())
        elif not args.no_values:
            text += f"\n{_shown(tensor)}"
        emit(args, text, data)
    return 0


def _tensor(checkpoint: Checkpoint, args: argparse.Namespace) -> LazyTensor:
    """The tensor, or an error that says in which layout there is one of that name."""
    try:
        return checkpoint[args.key]
    except MissingTensorError:
        for name in layouts.names(checkpoint.family) if checkpoint.family else ():
            try:
                found = args.key in checkpoint.convert(name)
            except LazysdError:
                continue
            if found:
                raise MissingTensorError(
                    f"{args.key!r} is not in this layout; it exists in {name}: add --to {name}"
                ) from None
        raise


def _values(tensor: LazyTensor) -> Any:
    """The values; of types narrower than a byte, the bytes that hold them."""
    values = tensor.materialize()
    return values.view(dtypes.bits_dtype(tensor.code)) if dtypes.is_packed(tensor.code) else values


def _shown(tensor: LazyTensor) -> str:
    """All values of a small tensor; of a large one its corners, which is all that is read."""
    shown = picks(tensor.dims)
    if shown is None:
        return str(_values(tensor))
    corners = tensor
    for axis, indices in enumerate(shown):
        if len(indices) < tensor.dims[axis]:
            corners = corners[(*(slice(None),) * axis, list(indices))]
    total = sum(nbytes for _, _, nbytes in corners.reads())
    values = _values(corners)
    return f"{corners_text(values, tensor.dims, shown)}\n(corners, {format_nbytes(total)} read; --slice shows more)"

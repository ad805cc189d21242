"""Merge a LoRA adapter into its base: base plus scaled update, expert by expert, under the memory budget.

Examples:
  lazysd merge Qwen3-30B-A3B my-adapter merged --verify
  lazysd merge Qwen3-30B-A3B my-adapter merged-nemo --to nemo
  lazysd merge Qwen3-30B-A3B-FP8 my-adapter merged --dtype bf16
"""

from __future__ import annotations

import argparse

from ..stores.strict_json import printable
from .common import add_adapter_numbers, add_opening, dtype, opened_whole, remarked, stated
from .convert import add_saving, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="the base checkpoint")
    parser.add_argument("adapter", metavar="ADAPTER", help="the adapter: a folder with adapter_config.json")
    parser.add_argument("dst", metavar="DST", help="folder to make")
    parser.add_argument("--to", metavar="LAYOUT", help="layout of the result (default: the base's)")
    parser.add_argument("--from", dest="source", metavar="LAYOUT", help="layout of the adapter, if evidence is lacking")
    among = parser.add_mutually_exclusive_group()
    among.add_argument(
        "--dtype", type=dtype, metavar="DTYPE", help="of the result, e.g. bf16; quantised weights are decoded"
    )
    among.add_argument(
        "--requantize",
        action="store_true",
        help="of a quantised base: encode weights that change again, by their own scheme, with a loss",
    )
    add_opening(parser)
    add_adapter_numbers(parser)
    add_saving(parser)


def run(args: argparse.Namespace) -> int:
    from ..merging import merge

    with opened_whole(args.base, args) as base, opened_whole(args.adapter, args) as adapter:
        options = {"dtype": args.dtype, "requantize": args.requantize}
        merged = merge(base, adapter, to=args.to, source=args.source, config=stated(args), **options)
        return write(remarked(merged, args), args, f"{printable(args.base)} merged with {printable(args.adapter)}")

"""List the known layouts and the rules they are made of."""

from __future__ import annotations

import argparse

from .. import layouts
from .common import add_json, emit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this layout")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    found = [layouts.get(args.name)] if args.name else layouts.all_layouts()
    data, lines = [], []
    for layout in found:
        rules = [{"hf": rule.hf, "to": rule.to, "axes": rule.axes} for rule in layout.rules]
        data.append({"name": layout.name, "family": layout.family, "description": layout.description, "rules": rules})
        lines.append(f"{layout.name} ({layout.family}): {layout.description}")
        lines += [f"    {rule.to}\n        {rule.axes}" for rule in layout.rules if not layout.is_hub]
    emit(args, "\n".join(lines), data)
    return 0

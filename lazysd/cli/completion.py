"""Print a script that completes commands, options, layouts, families and paths in a shell.

Needs shtab: pip install 'lazysd[completion]'. Layouts and families are those of the installed lazysd.

Examples:
  lazysd completion bash > ~/.local/share/bash-completion/completions/lazysd
  lazysd completion zsh > "${fpath[1]}/_lazysd"
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from .. import dtypes, layouts
from ..quant import registry
from .common import UsageError

_SHELLS = ("bash", "zsh", "tcsh", "fish")
_PATHS = ("CHECKPOINT", "SRC", "DST", "FILE", "DIR", "A", "B", "BASE", "ADAPTER")  # what metavars stand for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=_SHELLS, help="bash, zsh, tcsh or fish")


def run(args: argparse.Namespace) -> int:
    from .main import build_parser

    try:
        shtab = importlib.import_module("shtab")
    except ImportError:
        raise UsageError("completion needs shtab: pip install 'lazysd[completion]'") from None
    parser = build_parser()
    _say_choices(parser, shtab)
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _say_choices(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Give arguments the values that a shell may offer; the commands themselves take others as well."""
    words = {
        "LAYOUT": sorted(layouts.names()),
        "FAMILY": sorted(layouts.families()),
        "NAME": sorted(layouts.families()),
        "DTYPE": sorted({known.label for known in dtypes.DTYPES.values()}),
        "SCHEME": sorted(scheme.name for scheme in registry.schemes()),
    }
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _say_choices(command, shtab)
        elif action.metavar in words and action.choices is None:
            action.choices = words[str(action.metavar)]
        elif action.metavar in _PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]

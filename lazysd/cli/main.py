"""The parser, and the one place where the library's errors become exit codes.

Exit codes: 0 done, 1 a check failed, 2 usage, 3 bad input, 4 could not write, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from .. import errors
from .._version import __version__
from ..layouts import load
from . import convert, diff, inspect, layouts, merge, plan, show, stats, verify
from .common import UsageError

COMMANDS = (inspect, layouts, plan, convert, merge, verify, diff, show, stats)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of stdout, where no error of ours says more
_WRITING = (errors.OutputExistsError, errors.NoSpaceError, errors.WriteError, errors.ResumeMismatchError)


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="lazysd",
        description="Open, inspect and convert safetensors checkpoints of any size in a few megabytes of memory.",
        epilog="Exit codes: 0 done, 1 a check failed, 2 usage, 3 bad input, 4 could not write, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"lazysd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        name = module.__name__.rsplit(".", 1)[-1]
        summary, _, detail = (module.__doc__ or "").partition("\n")
        command = commands.add_parser(
            name, help=summary, description=f"{summary}\n{detail}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show a traceback with errors")
        command.set_defaults(action=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser().parse_args(argv)
    try:
        for file in getattr(args, "layouts", ()):
            load(file, overwrite=True)
        code: int = args.action(args)
        if sys.stdout is not None:  # None where the shell has closed it
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _failed(args, "interrupted; run the same command again to go on", 130)
    except BrokenPipeError:  # `lazysd inspect … | head` has seen enough
        _drop_stdout()
        return 0
    except _WRITING as error:
        return _failed(args, error, 4)
    except (errors.MemoryBudgetError, UsageError) as error:
        return _failed(args, error, 2)
    except errors.LazysdError as error:
        return _failed(args, error, 3)
    except OSError as error:
        if error.errno in _FULL:
            _drop_stdout()
        return _failed(args, error, 4 if error.errno in _FULL else 3)


def _drop_stdout() -> None:
    """Nobody can take what is still to be printed; without this, Python complains once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(args: argparse.Namespace, error: object, code: int) -> int:
    """Say in one line what went wrong."""
    if args.debug and isinstance(error, BaseException):
        traceback.print_exception(error)
    message = error
    if isinstance(error, OSError) and error.strerror:  # without "[Errno 30]"
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(message).split())
    print(f"lazysd: {''.join(char if char.isprintable() else '?' for char in text)}", file=sys.stderr)
    return code


def run() -> None:
    """Entry point of the `lazysd` command."""
    try:
        code = main()
    except KeyboardInterrupt:  # before a command had begun
        code = 130
    sys.exit(code)

"""The parser, and the one place where the library's errors become exit codes.

Exit codes: 0 done, 1 a check failed, 2 usage, 3 bad input, 4 could not write, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import errno
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

from .. import errors
from .._version import __version__
from ..layouts import load
from ..nearest import did_you_mean
from ..stores.strict_json import printable
from . import completion, convert, diff, inspect, layouts, merge, plan, show, signals, stats, verify
from .common import UsageError, drop_stdout, to_stderr
from .wording import in_options

COMMANDS = (inspect, layouts, plan, convert, merge, verify, diff, show, stats, completion)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of stdout, where no error of ours says more
_WRITING = (errors.OutputExistsError, errors.NoSpaceError, errors.WriteError, errors.ResumeMismatchError)


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line, like all others."""

    commands: ClassVar[dict[str, argparse.ArgumentParser]] = {}

    def error(self, message: str) -> NoReturn:
        to_stderr(printable(f"{self.prog}: {message}{self._meant(message)}; see `{self.prog} --help`"))
        self.exit(2)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Options that no command took are said by the command that was meant, and not by lazysd itself."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            self.commands.get(getattr(found, "command", ""), self).error(f"unrecognized arguments: {' '.join(rest)}")
        return found

    def _meant(self, message: str) -> str:
        """What a mistyped command or option may have been."""
        if found := re.match(r"argument COMMAND: invalid choice: '(.*)' \(", message):
            known = [module.__name__.rsplit(".", 1)[-1] for module in COMMANDS]
        elif found := re.match(r"unrecognized arguments: (--[^\s=]*)", message):
            known = list(self._option_string_actions)
            others = [name for name, parser in self.commands.items() if found[1] in parser._option_string_actions]
            if others:
                return f"; it is an option of {', '.join(others)}"
        else:
            return ""
        return did_you_mean(found[1], set(known))


class _Version(argparse.Action):
    """What is installed. Which kernel there is, is found out only here."""

    def __call__(self, parser: argparse.ArgumentParser, *given: object) -> NoReturn:
        from ..move.transpose import chosen

        print(f"lazysd {__version__}\nkernel: {chosen().name}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="lazysd",
        description="Open, inspect and convert safetensors checkpoints of any size in a few megabytes of memory.",
        epilog="Exit codes: 0 done, 1 a check failed, 2 usage, 3 bad input, 4 could not write, 130 or 143 interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version, and what copies blocks of data")
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
        _Parser.commands[name] = command
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 0
    args = parser.parse_args(argv)
    try:
        for file in getattr(args, "layouts", ()):
            load(file, overwrite=True)
        code: int = args.action(args)
        if sys.stdout is not None:  # None where the shell has closed it
            sys.stdout.flush()
        return code
    except KeyboardInterrupt as error:
        return signals.say_interrupted(error)
    except BrokenPipeError:  # `lazysd inspect … | head` has seen enough
        drop_stdout()
        return 0
    except _WRITING as error:
        return _failed(args, error, 4)
    except (errors.MemoryBudgetError, UsageError) as error:
        return _failed(args, error, 2)
    except errors.LazysdError as error:
        return _failed(args, error, 3)
    except OSError as error:
        if error.errno in _FULL:
            drop_stdout()
        return _failed(args, error, 4 if error.errno in _FULL else 3)


def _failed(args: argparse.Namespace, error: BaseException, code: int) -> int:
    """Say in one line what went wrong."""
    if signals.was_asked():  # whatever came of it, the signal is why
        return signals.say_interrupted(error)
    if args.debug:
        traceback.print_exception(error)
    message: object = error
    if isinstance(error, OSError) and error.strerror:  # without "[Errno 30]"
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    to_stderr(f"lazysd: {in_options(' '.join(str(message).split()))}")
    return code

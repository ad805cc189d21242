"""Write docs/cli.md from the parsers themselves; a test keeps it true.

python scripts/cli_reference.py > docs/cli.md
"""

from __future__ import annotations

import argparse
import os
import sys

from lazysd.cli.main import build_parser

HEAD = """# Command line

Made from `--help` by `scripts/cli_reference.py`. Results go to stdout; progress, remarks and one-line errors to stderr.
Exit codes: 0 done, 1 a check failed (verify, diff), 2 usage, 3 bad input, 4 could not write (exists, space,
permission), 130 interrupted. Sizes accept `1000`, `5GB` (powers of 1000) and `5GiB` (powers of 1024).
"""


def reference() -> str:
    """The help of every command, as Markdown."""
    os.environ["COLUMNS"] = "100"
    parser = build_parser()
    (commands,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    sections = [HEAD, "```text\n" + parser.format_help() + "```\n"]
    sections += [f"## lazysd {name}\n\n```text\n{command.format_help()}```\n" for name, command in commands.items()]
    return "\n".join(sections)


if __name__ == "__main__":
    sys.stdout.write(reference())

"""The documents keep their word: links lead somewhere, examples run, every name and command is explained."""

from __future__ import annotations

import argparse
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lazysd
from lazysd._version import __version__
from lazysd.cli.main import build_parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.glob("lazysd/**/*.py")
    if path.name != "__main__.py"  # importing it runs the command
)
# Folders of the machines lazysd is written on, in pieces so that this file does not hold them.
FORBIDDEN = ["/" + name + "/" for name in ("work", "root")]


def without_code(text: str) -> str:
    """Markdown without fenced blocks and code spans, where brackets are not links and `#` is no heading."""
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda span: re.sub(r"[\[\]()<>#]", "", span[0]), text)


def links(text: str) -> list[str]:
    """Targets of inline links, reference definitions and HTML src/href in a Markdown text."""
    text = without_code(text)
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)", text)
    references = re.findall(r"^\[[^\]]+\]:\s*<?(\S+?)>?\s*$", text, flags=re.MULTILINE)
    html = re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return inline + references + html


def anchors(text: str) -> set[str]:
    """The fragment of each heading, formed as code hosting sites form it."""
    titles = re.findall(r"^#{1,6}\s+(.+?)\s*$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(document: Path) -> list[str]:
    broken = []
    for link in links(document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        known = target.suffix != ".md" or not target.is_file() or not anchor
        if not target.exists() or not (known or anchor in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_exist(document: Path) -> None:
    assert broken_links(document) == []


def test_the_link_check_finds_broken_links(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Two words, `x(y)`\n")
    (tmp_path / "a.md").write_text(
        '[b](b.md) [c](c.md) [b2](b.md#two-words-xy) [b3](b.md#three) <img src="d.png">\n[r]: e.md\n'
        "`[no](no.md)`\n```\n[no](no.md)\n```\n[web](https://example.org/x) [top](#top)\n"
    )
    assert broken_links(tmp_path / "a.md") == ["c.md", "b.md#three", "#top", "e.md", "d.png"]


def test_readme_is_there() -> None:
    assert ROOT / "README.md" in DOCUMENTS


@pytest.mark.parametrize("name", sorted(lazysd.__all__))
def test_public_names_have_docstrings(name: str) -> None:
    value = getattr(lazysd, name)
    if isinstance(value, str):  # __version__
        return
    doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__  # a class's own, not its parent's
    assert (doc or "").strip(), f"lazysd.{name} has no docstring"


def subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str | None, argparse.ArgumentParser]]:
    """(name, one-line help, parser) of each command of a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield name, helps.get(name), command


COMMANDS = list(subcommands(build_parser()))


def test_there_are_commands() -> None:
    assert {"inspect", "layouts", "plan", "convert", "verify", "diff", "show"} <= {name for name, _, _ in COMMANDS}


@pytest.mark.parametrize(("name", "summary", "parser"), COMMANDS, ids=[name for name, _, _ in COMMANDS])
def test_commands_and_their_options_have_help(name: str, summary: str | None, parser: argparse.ArgumentParser) -> None:
    assert summary, f"lazysd {name} has no line in lazysd --help"
    unexplained = [" ".join(action.option_strings) or action.dest for action in parser._actions if not action.help]
    assert unexplained == [], f"options of lazysd {name} without help"
    assert f"usage: lazysd {name}" in parser.format_help()


@pytest.mark.parametrize("name", [name for name, _, _ in COMMANDS])
def test_commands_are_in_the_documents(name: str) -> None:
    assert any(f"lazysd {name}" in path.read_text(encoding="utf-8") for path in DOCUMENTS)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples run from the root of the repository, so they may open tests/golden."""
    monkeypatch.chdir(ROOT)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples in {name} fail; see the output"


def test_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?v?{re.escape(__version__)}\b", text, flags=re.MULTILINE)


def project_files() -> list[Path]:
    """What git tracks or would add; without git (an unpacked archive) everything outside hidden and built folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        paths = (path for path in ROOT.rglob("*") if not path.relative_to(ROOT).parts[0].startswith((".venv", ".git")))
    else:
        paths = (ROOT / name for name in done.stdout.decode().split("\0") if name)
    return sorted(path for path in paths if path.is_file() and "__pycache__" not in path.parts)


def test_no_file_names_a_private_folder() -> None:
    files = project_files()
    assert Path(__file__) in files
    found = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # tensors, pictures
            continue
        found += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
    assert found == []


def test_cli_reference_is_current() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from cli_reference import reference
    finally:
        sys.path.pop(0)
    current = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert current == reference(), "run: python scripts/cli_reference.py > docs/cli.md"

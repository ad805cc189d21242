"""docs/demo.svg shows what the commands really print, and is a well-formed picture."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lazysd.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
try:
    import demo
    import picture
finally:
    sys.path.pop(0)

REGENERATE = "run: python scripts/demo.py | python scripts/picture.py > docs/demo.svg"


def drawn(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).findall(".//{*}text")]


NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?: ?(?:[kMGT]?B|ms|s|min|h)\b)?")


def without_numbers(lines: list[str]) -> list[str]:
    """Times, rates, memory and random weights differ between machines, their units too; columns follow their widths."""
    masked = [NUMBER.sub("0", line).replace("0 workers", "0 worker") for line in lines]
    return [re.sub(r"\s+", " ", line).replace("[ 0", "[0") for line in masked]


def test_no_speed_changes_what_is_compared() -> None:
    slow, fast = "done 1.2 MB in 0.3 s (890.0 kB/s), 2 workers", "done 1.2 MB in 2.31 ms (1.4 GB/s), 1 worker"
    assert without_numbers([slow]) == without_numbers([fast]) == ["done 0 in 0 (0/s), 0 worker"]


def test_demo_picture_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.build(tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    printed = ""
    for title, command in demo.STEPS:
        assert main(shlex.split(command)) == 0, command
        printed += f"\n# {title}\n$ lazysd {command}\n{capsys.readouterr().out}"
    current = drawn((ROOT / "docs" / "demo.svg").read_text(encoding="utf-8"))
    assert without_numbers(current) == without_numbers(picture.chosen(printed)), REGENERATE
    commands = [line for line in current if line.startswith("$ ")]
    assert [line.split()[2] for line in commands] == ["inspect", "plan", "convert", "show"]


def test_hostile_output_is_drawn_as_text() -> None:
    lines = ["$ lazysd inspect <x>", "a & b </text><script>", '"q"']
    assert drawn(picture.draw(lines)) == lines


def test_long_steps_are_cut_in_the_middle_and_say_so() -> None:
    rows = [f"row {n}" for n in range(40)]
    lines = picture.chosen("\n# title\n$ lazysd inspect hf\n" + "\n".join(rows) + "\n\n# other\n$ lazysd verify a\nb\n")
    assert lines[:3] == ["# title", "$ lazysd inspect hf", "row 0"]
    assert lines[-2:] == ["…", "row 39"]
    assert len(lines) == picture.MAX_LINES + 1

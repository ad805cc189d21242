"""Systems that lack what Linux has: the same bytes without each of its calls, and without all of them together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import random_hf, write

import lazysd
from lazysd.errors import MissingShardError
from lazysd.stores import system

CHILD = Path(__file__).resolve().parent / "without_calls.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forked")
def test_the_same_bytes_without_calls_of_linux(tmp_path: Path) -> None:
    """Converted, verified, interrupted and resumed without each call; and without all of them, by the command too."""
    source = tmp_path / "source"
    write(source, random_hf(experts=11, hidden=8, inner=6, layers=3))
    command = [sys.executable, str(CHILD), str(source), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = {line.pop("without"): line for line in map(json.loads, done.stdout.splitlines())}
    from without_calls import WITHOUT

    assert list(answers) == list(WITHOUT)
    expected = answers["nothing"]["native"]
    assert len(expected) > 1
    for what, said in answers.items():
        assert "error" not in said, f"without {what}: {said['error']}"
        assert said["verified"], what
        assert said["maps read the same"], what
        assert said["interrupted"], what
        assert 0 < said["kept"] < len(expected), what
        assert said["native"] == said["again"] == expected, what
        assert said["locked"] == [], what
    assert answers["nothing"]["commands"] == answers["all of it"]["commands"] == [0, 0]


@pytest.mark.parametrize("gone", [(), ("preadv",), ("preadv", "pread", "pwrite")], ids=str)
def test_reading_and_writing_at_an_offset(
    gone: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in gone:
        monkeypatch.delattr(os, name)
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    try:
        assert system.write_at(fd, memoryview(b"abcdef"), 2) == 6
        assert system.write_at(fd, memoryview(b"xy"), 0) == 2
        buffer = memoryview(bytearray(9))
        assert system.read_at(fd, buffer[:3], 4) == 3
        assert bytes(buffer[:3]) == b"cde"
        assert system.read_at(fd, buffer, 6) == 2
        assert system.read_at(fd, buffer, 8) == 0
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "path", ["C:\\models\\Qwen3", "d:/models/Qwen3", "\\\\server\\share\\Qwen3", "C:model.safetensors"]
)
def test_paths_of_windows_are_no_urls(path: str) -> None:
    """A drive letter looks like a scheme."""
    with pytest.raises(MissingShardError, match=r"does not exist|no such file"):
        lazysd.open(path)

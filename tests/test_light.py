"""What moves, lists or compares bits imports no torch: a second and 200 MB that a user need not wait and pay for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Runs commands one after the other in one process; says on stderr what was imported.
CHILD = """
import os, sys
sys.meta_path.insert(0, type("NoTorch", (), {"find_spec": staticmethod(lambda name, path=None, target=None: (
    sys.exit(f"torch was imported by {sys.argv[1:]}") if name == "torch" else None))}))
from lazysd.cli.main import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


def without_torch(*words: object) -> str:
    """What the command prints; an AssertionError where it imports torch, or fails."""
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{words}: {done.stderr}")
    return done.stdout


@pytest.fixture
def src(golden: Path, tmp_path: Path) -> Path:
    shutil.copytree(golden / "qwen3_moe_tiny", tmp_path / "src")
    return tmp_path / "src"


def test_commands_that_compute_nothing_import_no_torch(src: Path, tmp_path: Path) -> None:
    nemo, back, one = tmp_path / "nemo", tmp_path / "back", tmp_path / "one.safetensors"
    without_torch("inspect", src)
    without_torch("layouts")
    without_torch("plan", src, "--to", "nemo")
    without_torch("convert", src, nemo, "--to", "nemo", "--max-shard-size", "20KB", "--verify")
    without_torch("convert", nemo, back, "--to", "hf", "--workers", "1")
    without_torch("convert", src, one, "--rename", "model.*=*", "--exclude", "lm_head.*", "--max-memory", "64MB")
    without_torch("verify", nemo)
    without_torch("verify", nemo, "--against", src)
    without_torch("verify", back, "--against", src)
    without_torch("inspect", one, "--json")
    without_torch("diff", back, src, "--no-values")


@pytest.mark.parametrize("to", ["nemo", "peft-per-expert"])
def test_adapters_convert_without_torch(golden: Path, tmp_path: Path, to: str) -> None:
    there = tmp_path / "there"
    without_torch("convert", golden / "peft_paramwrapper_r3", there, "--to", to)
    without_torch("verify", there)
    without_torch("convert", there, tmp_path / "back", "--to", "peft-0.19")


def test_a_command_that_computes_imports_torch(src: Path, tmp_path: Path) -> None:
    """So that the tests above can fail."""
    with pytest.raises(AssertionError, match="torch was imported"):
        without_torch("convert", src, tmp_path / "out", "--dtype", "f32")

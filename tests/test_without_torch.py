"""Conversions that only move bits never import torch, whichever kernel moves them; the files are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lazysd

CODE = """
import sys
from lazysd.cli.main import main
assert main(sys.argv[1:]) == 0
print("torch" in sys.modules)
"""


def converted(*arguments: object, kernel: str = "on") -> str:
    """Whether torch was imported, as the process says."""
    command = [sys.executable, "-c", CODE, "convert", *map(str, arguments), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LAZYSD_KERNEL": kernel})
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.mark.parametrize("kernel", ["on", "off"])
@pytest.mark.parametrize(
    ("source", "to"),
    [("qwen3_moe_tiny", "nemo"), ("peft_paramwrapper_r3", "nemo")],
)
def test_moving_bits_needs_no_torch(golden: Path, tmp_path: Path, source: str, to: str, kernel: str) -> None:
    assert converted(golden / source, tmp_path / "there", "--to", to, kernel=kernel) == "False"
    lazysd.open(golden / source).convert(to).save(tmp_path / "expected")
    assert weights(tmp_path / "there") == weights(tmp_path / "expected")
    back = str(lazysd.open(golden / source).layout)
    assert converted(tmp_path / "there", tmp_path / "back", "--to", back, kernel=kernel) == "False"
    lazysd.open(tmp_path / "there").convert(back).save(tmp_path / "expected back")
    assert weights(tmp_path / "back") == weights(tmp_path / "expected back")


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_casting_some_values_needs_no_torch(golden: Path, tmp_path: Path, dtype: str) -> None:
    assert converted(golden / "qwen3_moe_tiny", tmp_path / "cast", "--dtype", dtype) == "False"
    assert_cast(golden, tmp_path, dtype)


def test_calculating_values_needs_it(golden: Path, tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    assert converted(golden / "qwen3_moe_tiny", tmp_path / "cast", "--dtype", "f64") == "True"
    assert_cast(golden, tmp_path, "f64")


def test_casting_many_values_is_worth_it(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = next(iter(lazysd.open(golden / "qwen3_moe_tiny").values())).to(lazysd.dtypes.to_torch("F16"))
    for few, needed in ((node.numel(), False), (node.numel() - 1, True)):
        monkeypatch.setattr("lazysd.save.plan.FEW", few)
        assert lazysd.Checkpoint({"a": node}).plan().calculates is needed


def assert_cast(golden: Path, tmp_path: Path, dtype: str) -> None:
    to = lazysd.dtypes.to_torch(dtype.upper())
    lazysd.open(golden / "qwen3_moe_tiny").map(lambda t: t.to(to)).save(tmp_path / "expected")
    assert weights(tmp_path / "cast") == weights(tmp_path / "expected")


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_commands_that_list_or_compare_bits_need_no_torch(golden: Path, tmp_path: Path) -> None:
    src, nemo, one = golden / "qwen3_moe_tiny", tmp_path / "nemo", tmp_path / "one.safetensors"
    for words in (
        ("inspect", src),
        ("layouts",),
        ("plan", src, "--to", "nemo"),
        ("convert", src, nemo, "--to", "nemo", "--max-shard-size", "20KB", "--verify"),
        ("convert", src, one, "--rename", "model.*=*", "--exclude", "lm_head.*", "--max-memory", "64MB"),
        ("verify", nemo),
        ("verify", nemo, "--against", src),
        ("inspect", one, "--json"),
        ("diff", src, src, "--no-values"),
        ("diff", src, nemo),
        ("stats", src),
        ("stats", src, "model.embed_tokens.weight"),
    ):
        done = subprocess.run([sys.executable, "-c", CODE, *map(str, words)], capture_output=True, text=True)
        assert (done.returncode, done.stdout.split()[-1:]) == (0, ["False"]), (words, done.stderr)


ALONE = """
import atexit, os
from lazysd.cli.entry import run
atexit.register(lambda: print(len(os.listdir("/proc/self/task")), os.environ["OPENBLAS_NUM_THREADS"]))
run()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted by Linux's /proc")
@pytest.mark.parametrize("said", [None, "3"])
def test_a_command_starts_no_crew_of_numpys(golden: Path, tmp_path: Path, said: str | None) -> None:
    """One thread, and one that computes while it writes; what the user says of it counts."""
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    env |= {"OPENBLAS_NUM_THREADS": said} if said else {}
    command = ["convert", str(golden / "qwen3_moe_tiny"), str(tmp_path / "out"), "--to", "nemo", "--workers", "1", "-q"]
    done = subprocess.run([sys.executable, "-c", ALONE, *command], capture_output=True, text=True, env=env, check=True)
    threads, limit = done.stdout.split()[-2:]
    assert limit == (said or "1")
    assert said or int(threads) <= 2

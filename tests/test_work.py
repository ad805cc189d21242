"""How much work a fixed conversion does, counted rather than timed: bytes, calls to the system, memory held, calls.

A number that grows is either worth it, and then it changes here, or a mistake that no test of results finds.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.move import scratch, transpose
from lazysd.move.kernels import compiled, plain
from lazysd.save import run
from lazysd.stores.base import File, Parts

EXPERTS, HIDDEN, INNER = 6, 1024, 768  # an expert's gate is larger than a block
KEY = "model.layers.0.mlp.experts.{}.{}_proj.weight"
SHAPES = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
NBYTES = 3 * EXPERTS * HIDDEN * INNER * 2
CONFIG = {
    "model_type": "qwen3_moe", "hidden_size": HIDDEN, "moe_intermediate_size": INNER, "num_experts": EXPERTS,
    "num_hidden_layers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "hf").mkdir()
    tensors = {
        KEY.format(e, name): torch.randint(-9999, 9999, shape, dtype=torch.int16).view(torch.bfloat16)
        for e in range(EXPERTS)
        for name, shape in SHAPES.items()
    }
    save_file(tensors, folder / "hf" / "model.safetensors", {"format": "pt"})
    (folder / "hf" / "config.json").write_text(json.dumps(CONFIG))
    lazysd.open(folder / "hf").convert("nemo").save(folder / "nemo", workers=1)
    return folder


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that holds no memory of its own, as torch's does."""
    best = compiled.KERNEL if compiled.KERNEL.is_available() else plain.KERNEL
    monkeypatch.setattr(transpose, "chosen", lambda: best)


class Work:
    """Counts what goes on in this process while it is patched in."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.num_reads = 0  # of tensors' bytes
        self.written: list[int] = []
        self.held: list[int] = []  # fresh buffers of the mover and of the save
        self.calls: Counter[str] = Counter()
        patch.setattr(os, "pwrite", self._noting(os.pwrite, self.written))
        patch.setattr(File, "read", self._counting(File.read))
        for module in (scratch, run):
            patch.setattr(module, "np", _Numpy(self.held))

    @staticmethod
    def _noting(call: Callable[..., int], found: list[int]) -> Callable[..., int]:
        def noted(*given: Any) -> int:
            found.append(call(*given))
            return found[-1]

        return noted

    def _counting(self, read: Callable[[File, Parts], None]) -> Callable[[File, Parts], None]:
        def counted(file: File, parts: Parts) -> None:
            self.num_reads += sum(1 for _ in parts)
            read(file, parts)

        return counted

    def profile(self, frame: FrameType, event: str, argument: object) -> None:
        place = Path(frame.f_code.co_filename)
        if event == "call" and "lazysd" in place.parts and "kernels" not in place.parts:  # whichever kernel there is
            self.calls[frame.f_code.co_qualname] += 1


def read_nbytes() -> int:
    """What this process has read so far, as the system counts it: the kernel reads in C."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])


class _Numpy:
    """numpy, whose `empty` is counted."""

    def __init__(self, held: list[int]) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, nbytes: int, dtype: Any) -> Any:
        self._held.append(nbytes)
        return np.empty(nbytes, dtype)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this system counts no reads of a process")
@pytest.mark.parametrize(
    ("start", "to", "most_reads", "most_writes", "most_held"),
    [
        ("hf", "nemo", 36, 13, 8_982_528),
        ("nemo", "hf", 36, 13, 8_982_528),
    ],
)
def test_a_conversion(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    start: str, to: str, most_reads: int, most_writes: int, most_held: int,
) -> None:  # fmt: skip
    checkpoint = lazysd.open(source / start, io="pread").convert(to)
    checkpoint.save(tmp_path / "first", workers=1)  # what is imported on the way is read once
    with monkeypatch.context() as patch:
        patch.setattr("lazysd.move.lanes._local", type("Fresh", (), {})())  # lanes that hold no buffer yet
        work, before = Work(patch), read_nbytes()
        plan = checkpoint.save(tmp_path / "out", workers=1)
        read = read_nbytes() - before
    header = plan.write_nbytes - NBYTES
    beside = sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) - plan.write_nbytes
    assert plan.read_nbytes == NBYTES
    assert NBYTES <= read <= NBYTES + 2 * beside  # each byte once; config.json is copied
    assert NBYTES + header <= sum(work.written) <= NBYTES + header + beside
    assert work.num_reads <= most_reads
    assert len(work.written) <= most_writes
    assert sum(work.held) <= most_held


@pytest.mark.parametrize(("to", "most"), [("nemo", 100), ("hf", 350)])
def test_python_calls_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, most: int) -> None:
    """Of a save of many small tensors, where they are what takes the time. Other versions of Python count others."""
    experts = 200
    tensors = {KEY.format(e, name): torch.zeros(4, 4) for e in range(experts) for name in SHAPES}
    save_file(tensors, tmp_path / "many.safetensors", {"format": "pt"})
    checkpoint = lazysd.open(tmp_path / "many.safetensors").convert("nemo", family="qwen3_moe")
    if to == "hf":
        checkpoint.save(tmp_path / "nemo")
        checkpoint = lazysd.open(tmp_path / "nemo").convert("hf", family="qwen3_moe")
    work = Work(monkeypatch)
    sys.setprofile(work.profile)
    try:
        checkpoint.save(tmp_path / "out", workers=1)
    finally:
        sys.setprofile(None)
    assert work.calls.total() / (3 * experts) <= most

"""Many threads on one checkpoint, and memory that stays at the budget whatever the size of the model."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import bits, by_hand, random_hf, write

import lazysd
from lazysd.errors import ClosedCheckpointError
from lazysd.stores.base import File, Parts

SHAPE = {"experts": 6, "hidden": 40, "inner": 24, "layers": 3}


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_many_threads_read_one_checkpoint(tmp_path: Path, io: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tensors, slices, casts and fills of strided views, of two layouts, in no order, by eight threads."""
    hf = random_hf(**SHAPE)
    src = write(tmp_path / "src", hf, shards=5, config={"num_experts": 6})
    opened: list[str] = []
    system_open = os.open

    def noting(path: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(str(path))
        return system_open(path, *args, **kwargs)

    with lazysd.open(src, io=io) as ckpt:
        monkeypatch.setattr(os, "open", noting)
        nemo = ckpt.convert("nemo")
        eager = {}
        for layer in range(3):
            eager |= by_hand(hf, 6, layer)["nemo"]
        keys = sorted(eager)
        start = threading.Barrier(8)

        def work(seed: int) -> int:
            order = random.Random(seed)
            start.wait()  # the first reads, which open the files, meet
            for _ in range(60):
                key, expert = order.choice(keys), order.randrange(6)
                node, wanted = nemo[key], eager[key]
                way = order.randrange(4)
                if way == 0:
                    assert torch.equal(bits(node.materialize()), wanted.contiguous())
                elif way == 1:
                    assert torch.equal(bits(node[expert, 3:20:2].materialize()), wanted[expert, 3:20:2].contiguous())
                elif way == 2:
                    out = torch.zeros(*node.shape[1:], 2, dtype=torch.bfloat16)
                    node[expert].materialize(out=out[..., 1])
                    assert torch.equal(bits(out[..., 1]), wanted[expert].contiguous())
                    assert not out[..., 0].any()
                else:
                    plain = order.choice(sorted(hf))
                    assert torch.equal(bits(ckpt[plain].materialize()), bits(hf[plain]))
            return seed

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(8))) == list(range(8))
    assert sorted(opened) == sorted(map(str, src.glob("*.safetensors")))  # each once, whichever thread came first


def test_closing_while_others_read(tmp_path: Path) -> None:
    """A reader that meets close() gets its own bytes or the error, never those of a file opened since."""
    hf = random_hf(**SHAPE)
    src = write(tmp_path / "src", hf, config={"num_experts": 6})
    (tmp_path / "other").write_bytes(b"\xaa" * 200_000)
    key = "model.layers.1.mlp.experts.down_projs"
    wanted = by_hand(hf, 6, 1)["nemo"][key].contiguous()
    for _ in range(20):
        ckpt = lazysd.open(src, io="pread")
        node = ckpt.convert("nemo")[key]
        node[0, 0].materialize()
        outcomes: list[str] = []

        def work(node: lazysd.LazyTensor = node, outcomes: list[str] = outcomes) -> None:
            try:
                while True:
                    outcomes.append("same" if torch.equal(bits(node.materialize()), wanted) else "other bytes")
            except ClosedCheckpointError:
                outcomes.append("closed")
            except Exception as error:  # noqa: BLE001 - whatever it is, the assertion below shows it
                outcomes.append(repr(error))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(outcomes) < 3:
            pass
        ckpt.close()
        others = [
            os.open(tmp_path / "other", os.O_RDONLY) for _ in range(4)
        ]  # would get the descriptor that close() gave back
        for thread in threads:
            thread.join()
        for other in others:
            os.close(other)
        assert set(outcomes) == {"same", "closed"}
        assert outcomes.count("closed") == 3


def test_an_error_in_one_thread_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = random_hf(**SHAPE)
    ckpt = lazysd.open(write(tmp_path / "src", hf, config={"num_experts": 6}), io="pread")
    nemo, read = ckpt.convert("nemo"), File.read

    def failing(self: File, parts: Parts) -> None:
        if threading.current_thread().name == "bad" and random.random() < 0.3:
            raise OSError("flaky disk")
        read(self, parts)

    monkeypatch.setattr(File, "read", failing)
    found: dict[str, int] = {"bad": 0, "good": 0}

    def work() -> None:
        name = threading.current_thread().name
        for _ in range(30):
            for layer in range(3):
                for key, wanted in by_hand(hf, 6, layer)["nemo"].items():
                    try:
                        assert torch.equal(bits(nemo[key].materialize()), wanted.contiguous())
                    except OSError:
                        found[name] += 1

    threads = [threading.Thread(target=work, name=name) for name in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["bad"] > 0
    assert found["good"] == 0


SAVE = """
import json, sys, torch, lazysd
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
src, dst, to, budget = sys.argv[1:]
ckpt = lazysd.open(src)
import lazysd.save.run
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
plan = ckpt.convert(to).save(dst, max_memory=int(budget), max_shard_size="40MB")
print(json.dumps([status("VmHWM") - before, plan.peak_nbytes, ckpt.nbytes]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["hf -> nemo", "nemo -> hf"])
def test_a_save_grows_by_its_budget_at_any_size(tmp_path: Path, way: str) -> None:
    """Two models, the second four times the first, both many times the budget: the same growth, within the budget."""
    origin, to = way.split(" -> ")
    budget = 40_000_000
    growths, sizes = [], []
    for layers in (2, 8):
        src = tmp_path / f"{origin}-{layers}"
        hf = random_hf(experts=16, hidden=512, inner=512, layers=layers)
        write(src, hf, shards=3, config={"num_experts": 16})
        if origin == "nemo":
            src = lazysd.open(src).convert("nemo").save(tmp_path / f"n{layers}") and tmp_path / f"n{layers}"
        command = [sys.executable, "-c", SAVE, str(src), str(tmp_path / f"out{layers}"), to, str(budget)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        growth, projected, nbytes = json.loads(done.stdout)
        assert growth <= projected <= budget
        growths.append(growth)
        sizes.append(nbytes)
    assert sizes[0] > budget
    assert sizes[1] > 3.9 * sizes[0]
    assert growths[1] < growths[0] + 6_000_000

"""iter_tensors: order, bounds, errors, early stops; and handing over between streams, with CUDA played by stand-ins."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, random_hf, write
from safetensors import safe_open
from safetensors.torch import save_file

import lazysd
from lazysd import iterate as module
from lazysd.errors import ClosedCheckpointError, ReadError
from lazysd.tensor.lazy import LazyTensor

KB = 1000


@pytest.fixture
def ckpt(tmp_path: Path) -> Iterator[lazysd.Checkpoint]:
    """Ten tensors of 1 kB and one of 5 kB in two shards."""
    tensors = {f"t{n}": torch.full((KB,), n, dtype=torch.uint8) for n in range(10)}
    tensors["big"] = torch.arange(5 * KB).to(torch.uint8)
    with lazysd.open(write(tmp_path / "ckpt", tensors, shards=2)) as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread for thread in threading.enumerate() if thread.name == "lazysd-ahead"] == []


def disk_order(folder: Path) -> list[str]:
    """Keys by shard and by where safetensors itself says they begin (its own order is by offset)."""
    keys: list[str] = []
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            keys += file.offset_keys()
    return keys


@pytest.mark.parametrize("prefetch", [1, 1500, "4kB", "64MB"])
def test_every_tensor_in_file_order(ckpt: lazysd.Checkpoint, tmp_path: Path, prefetch: int | str) -> None:
    found = list(ckpt.iter_tensors(prefetch=prefetch))
    assert [key for key, _ in found] == disk_order(tmp_path / "ckpt")
    assert_same(dict(found), {f"t{n}": torch.full((KB,), n, dtype=torch.uint8) for n in range(10)}
                | {"big": torch.arange(5 * KB).to(torch.uint8)})  # fmt: skip


def test_order_does_not_depend_on_the_order_of_keys(ckpt: lazysd.Checkpoint, tmp_path: Path) -> None:
    backwards = lazysd.Checkpoint({key: ckpt[key] for key in reversed(list(ckpt))}, files=ckpt.files)
    assert [key for key, _ in backwards.iter_tensors()] == disk_order(tmp_path / "ckpt")


def test_converted_checkpoints_go_by_their_first_source_byte(tmp_path: Path) -> None:
    hf = random_hf(experts=3, layers=2)
    src = write(tmp_path / "src", hf, config={"num_experts": 3})
    ckpt = lazysd.open(src)
    away = lazysd.Checkpoint(dict(sorted(ckpt.convert("nemo").items(), reverse=True)), files=ckpt.files, layout="nemo",
                             family="qwen3_moe", config=ckpt.config)  # fmt: skip
    starts = {key: min(offset for _, offset, _ in node.reads()) for key, node in away.items()}
    found = [key for key, _ in away.iter_tensors()]
    assert found == sorted(away, key=starts.__getitem__) != list(away)
    away.save(tmp_path / "nemo")
    back = lazysd.open(tmp_path / "nemo").convert("hf")
    starts = {key: min(offset for _, offset, _ in node.reads()) for key, node in back.items()}
    pairs = list(back.iter_tensors())
    assert [starts[key] for key, _ in pairs] == sorted(starts.values())
    assert_same(dict(pairs), hf)


def test_mixed_sources(ckpt: lazysd.Checkpoint, tmp_path: Path) -> None:
    save_file({"x": torch.ones(4)}, tmp_path / "other.safetensors")
    other = lazysd.open(tmp_path / "other.safetensors")
    mixed = ckpt.select("t0") | {"memory": torch.zeros(2), "scalar": torch.tensor(3), "cast": other["x"].to(torch.half)}
    assert [key for key, _ in mixed.iter_tensors()] == ["memory", "scalar", "t0", "cast"]
    assert list(lazysd.Checkpoint({}).iter_tensors()) == []


def test_tensors_are_the_callers_own(ckpt: lazysd.Checkpoint, tmp_path: Path) -> None:
    held = torch.zeros(3)
    for _, tensor in (ckpt | {"memory": held}).iter_tensors():
        tensor.add_(1)
    assert torch.equal(held, torch.zeros(3))
    assert torch.equal(ckpt["t1"].materialize(), torch.full((KB,), 1, dtype=torch.uint8))


@pytest.mark.parametrize("prefetch", [1, 1000, 1999, 2000, 3500, 6000, 100_000])
def test_never_beyond_the_bound(ckpt: lazysd.Checkpoint, monkeypatch: pytest.MonkeyPatch, prefetch: int) -> None:
    """Live bytes, counted from the start of a read to the consumer's next request, by the test itself."""
    live: dict[str, int] = {}
    lock, peaks = threading.Lock(), []
    names = {id(node): key for key, node in ckpt.items()}
    original = module.read

    def noted(node: LazyTensor, device: torch.device) -> torch.Tensor:
        with lock:
            live[names[id(node)]] = node.nbytes
            peaks.append((sum(live.values()), len(live)))
        return original(node, device)

    monkeypatch.setattr(module, "read", noted)
    iterator = ckpt.iter_tensors(prefetch=prefetch)
    held = None
    while True:
        if held is not None:
            time.sleep(0.002)  # let the thread run as far ahead as it will
            with lock:
                del live[held]
        pair = next(iterator, None)
        if pair is None:
            break
        held = pair[0]
    assert all(total <= prefetch or count == 1 for total, count in peaks)
    reached = max(total for total, _ in peaks)
    assert reached == max(5 * KB, min(prefetch // KB * KB, 15 * KB))  # and it does read ahead


def test_reading_goes_on_while_the_consumer_works(ckpt: lazysd.Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    third = threading.Event()
    calls: list[LazyTensor] = []
    original = module.read

    def noted(node: LazyTensor, device: torch.device) -> torch.Tensor:
        calls.append(node)
        if len(calls) == 3:
            third.set()
        return original(node, device)

    monkeypatch.setattr(module, "read", noted)
    iterator = ckpt.iter_tensors(prefetch="100kB")
    next(iterator)
    assert third.wait(10)
    iterator.close()


def test_nothing_starts_before_the_first_tensor_is_asked_for(ckpt: lazysd.Checkpoint) -> None:
    iterator = ckpt.iter_tensors()
    assert not [thread for thread in threading.enumerate() if thread.name == "lazysd-ahead"]
    iterator.close()


def test_errors_reach_the_consumer_where_they_happen(ckpt: lazysd.Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = module.read, []

    def failing(node: LazyTensor, device: torch.device) -> torch.Tensor:
        calls.append(node)
        if len(calls) == 4:
            raise ReadError("shard is gone")
        return original(node, device)

    monkeypatch.setattr(module, "read", failing)
    iterator = ckpt.iter_tensors()
    for _ in range(3):
        next(iterator)
    with pytest.raises(ReadError, match="shard is gone"):
        next(iterator)
    assert len(calls) == 4


def test_closing_in_between_is_said(ckpt: lazysd.Checkpoint) -> None:
    iterator = ckpt.iter_tensors(prefetch=1)
    next(iterator)
    ckpt.close()
    with pytest.raises(ClosedCheckpointError, match="closed checkpoint"):
        list(iterator)


@pytest.mark.parametrize("way", ["break", "error", "close", "forgotten"])
def test_stopping_early_ends_the_thread(ckpt: lazysd.Checkpoint, way: str) -> None:
    if way == "break":
        for _ in ckpt.iter_tensors(prefetch=1):
            break
    elif way == "error":
        with pytest.raises(ZeroDivisionError):
            [1 / 0 for _ in ckpt.iter_tensors()]
    else:
        iterator = ckpt.iter_tensors(prefetch="2kB")
        next(iterator)
        if way == "close":
            iterator.close()
        del iterator
    assert [thread for thread in threading.enumerate() if thread.name == "lazysd-ahead"] == []


def test_arguments_are_checked_at_once(ckpt: lazysd.Checkpoint) -> None:
    with pytest.raises(ValueError, match="size"):
        ckpt.iter_tensors(prefetch="much")
    with pytest.raises(RuntimeError, match="device"):
        ckpt.iter_tensors(device="nowhere")


def test_meta(ckpt: lazysd.Checkpoint) -> None:
    assert {key: (t.device.type, t.shape) for key, t in ckpt.iter_tensors(device="meta")} == {
        key: ("meta", node.shape) for key, node in ckpt.items()
    }


PEAK = """
import sys, time, torch, lazysd
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
ckpt = lazysd.open(sys.argv[1])
for key, tensor in ckpt.select("small").iter_tensors():
    pass
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
for key, tensor in ckpt.drop("small").iter_tensors(prefetch=int(sys.argv[2])):
    if key == "t0":
        time.sleep(0.5)  # it reads ahead meanwhile
    del tensor
print(status("VmHWM") - before)
"""


@pytest.mark.slow
def test_memory_stays_at_the_bound(tmp_path: Path) -> None:
    """Sixteen tensors of 8 MB: the process grows by the bound, far less than by what is read."""
    tensors = {f"t{n}": torch.full((8 << 20,), n, dtype=torch.uint8) for n in range(16)}
    save_file({**tensors, "small": torch.zeros(9)}, tmp_path / "m.safetensors")
    limit = 24 << 20
    command = [sys.executable, "-c", PEAK, str(tmp_path / "m.safetensors"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout)
    assert 12 << 20 <= growth <= limit + (6 << 20)  # it reads ahead; a block of scratch and thread stacks come on top


class StandIn(module.Handover):
    """Remembers who called what, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any, str]] = []

    def note(self, what: str, value: Any = None) -> None:
        self.log.append((what, value, threading.current_thread().name))

    def ready(self) -> Any:
        self.note("ready", len(self.log))
        return len(self.log) - 1

    def take(self, tensor: torch.Tensor, event: Any) -> None:
        self.note("take", event)


def test_the_consumer_waits_for_the_event_behind_each_copy(
    ckpt: lazysd.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = StandIn()
    monkeypatch.setattr(module, "handover_for", lambda device: stand_in)
    count = sum(1 for _ in ckpt.iter_tensors())
    ready = [value for what, value, thread in stand_in.log if what == "ready" and thread == "lazysd-ahead"]
    taken = [value for what, value, thread in stand_in.log if what == "take" and thread == "MainThread"]
    assert ready == taken
    assert len(taken) == count == 11


@pytest.mark.gpu
def test_cuda_is_ordered_with_the_consumer(tmp_path: Path) -> None:
    tensors = {f"t{n}": torch.randint(0, 255, (8 << 20,), dtype=torch.uint8) for n in range(8)}
    save_file(tensors, tmp_path / "m.safetensors")
    stream = torch.cuda.Stream()
    sums = {}
    with torch.cuda.stream(stream):
        for key, tensor in lazysd.open(tmp_path / "m.safetensors").iter_tensors("cuda", prefetch="20MB"):
            assert tensor.device == torch.device("cuda", torch.cuda.current_device())
            torch.cuda._sleep(10_000_000)  # the memory must not be reused while this is queued
            sums[key] = tensor.clone()
    stream.synchronize()
    for key, tensor in tensors.items():
        assert torch.equal(sums[key].cpu(), tensor)

"""The CUDA ring, run on a CPU whose copies happen as late as CUDA allows them to; and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.errors import ReadError
from lazysd.move import fill as mover
from lazysd.move.blocks import HOST_BLOCK_NBYTES
from lazysd.move.kernels.eager import SERIAL_NUMEL, copy_block
from lazysd.move.lanes import lane_for
from lazysd.move.lanes.cuda import CUDA_RING_NBYTES, CudaLane
from lazysd.stores.base import File, Parts
from lazysd.tensor.lazy import LazyTensor

RING_NBYTES = 1024
BLOCK_NBYTES = 256


class LateStream:
    """Work queued on it runs when somebody waits for it, and not a moment before."""

    def __init__(self) -> None:
        self.work: list[Callable[[], Any]] = []
        self.num_done = 0

    def run(self, until: int | None = None) -> None:
        while self.num_done < (len(self.work) if until is None else until):
            self.num_done += 1
            self.work[self.num_done - 1]()

    def wait_stream(self, other: LateStream) -> None:
        until = len(other.work)
        self.work.append(lambda: other.run(until))

    def synchronize(self) -> None:
        self.run()


class LateEvent:
    def record(self, stream: LateStream) -> None:
        self.stream, self.until = stream, len(stream.work)

    def query(self) -> bool:
        return self.stream.num_done >= self.until

    def synchronize(self) -> None:
        self.stream.run(self.until)


class LateLane(CudaLane):
    """CudaLane without CUDA."""

    block_nbytes = BLOCK_NBYTES

    def __init__(self, ring_nbytes: int = RING_NBYTES) -> None:
        self.caller = LateStream()
        self.kept: list[torch.Tensor] = []
        self.pinned_nbytes = 0
        super().__init__("cpu", ring_nbytes)

    def _new_stream(self) -> Any:
        return LateStream()

    def _new_event(self) -> Any:
        return LateEvent()

    def _pinned(self, nbytes: int) -> torch.Tensor:
        self.pinned_nbytes += nbytes
        return torch.empty(nbytes, dtype=torch.uint8)

    def _current_stream(self) -> Any:
        return self.caller

    @contextmanager
    def _on(self, stream: Any) -> Iterator[None]:
        yield

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.stream.work.append(lambda: target.copy_(source))

    def _keep(self, target: torch.Tensor) -> None:
        self.kept.append(target)


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> LateLane:
    made = LateLane()
    monkeypatch.setattr(mover, "lane_for", lambda device: made)
    return made


DATA = {f"e{n}": torch.randint(-9999, 9999, (12, 34), dtype=torch.int16) for n in range(6)}


@pytest.fixture
def ckpt(tmp_path: Path) -> lazysd.Checkpoint:
    save_file(DATA, tmp_path / "m.safetensors")
    return lazysd.open(tmp_path / "m.safetensors")


def graphs(of: dict[str, Any]) -> dict[str, Any]:
    """Lazy or eager, by what `of` holds."""
    parts = list(of.values())
    return {
        "plain": parts[0],
        "stack": torch.stack(parts),
        "transposed": torch.stack(parts).transpose(1, 2),
        "strided": torch.cat(parts, dim=1)[1:9:3, 5:150:4],
        "nemo": torch.stack([torch.cat(parts[k : k + 2]).transpose(0, 1) for k in (0, 2, 4)]),
    }


@pytest.mark.parametrize("name", graphs(DATA))
def test_late_copies_arrive(lane: LateLane, ckpt: lazysd.Checkpoint, name: str) -> None:
    lazy, wanted = graphs(dict(ckpt))[name], graphs(DATA)[name]
    assert isinstance(lazy, LazyTensor)
    out = torch.zeros(wanted.shape, dtype=torch.int16)
    lane.caller.work.append(lambda: out.fill_(-1))  # the caller's own work on the target comes first
    lazy.materialize(out=out)
    assert [kept.data_ptr() for kept in lane.kept] == [out.data_ptr()]
    lane.caller.run()  # what reads `out` on the caller's stream waits like this
    assert torch.equal(out, wanted)
    assert lane.pinned_nbytes <= RING_NBYTES


def test_copies_are_late(lane: LateLane, ckpt: lazysd.Checkpoint) -> None:
    """Otherwise the test above would prove nothing."""
    out = torch.zeros(12, 34, dtype=torch.int16)
    ckpt["e0"].materialize(out=out)
    assert not torch.equal(out, DATA["e0"])


def test_the_ring_is_reused(lane: LateLane, ckpt: lazysd.Checkpoint) -> None:
    for _ in range(3):
        for key in ckpt:
            out = torch.zeros(12, 34, dtype=torch.int16)
            ckpt[key].materialize(out=out)
            lane.caller.run()
            assert torch.equal(out, DATA[key])
    assert lane.pinned_nbytes <= RING_NBYTES


def test_an_idle_ring_stays_small(lane: LateLane, ckpt: lazysd.Checkpoint) -> None:
    for _ in range(5):
        ckpt["e0"][0].materialize(out=torch.zeros(34, dtype=torch.int16))
        lane.caller.run()
    assert lane.pinned_nbytes == BLOCK_NBYTES


def test_a_failed_read_leaves_the_ring_whole(
    lane: LateLane, ckpt: lazysd.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = File.read, []

    def failing(self: File, parts: Parts) -> None:
        for buffer, offset in parts:
            calls.append(offset)
            if len(calls) == 3:
                raise ReadError("gone")
            read(self, [(buffer, offset)])

    monkeypatch.setattr(File, "read", failing)
    out = torch.zeros(6, 12, 34, dtype=torch.int16)
    lazy = torch.stack(list(ckpt.values()))
    with pytest.raises(ReadError, match="gone"):
        lazy.materialize(out=out)
    assert lane._num_made == len(lane._slots) == 2  # of the three slots, the one that failed is gone
    lazy.materialize(out=out)
    lane.caller.run()
    assert torch.equal(out, torch.stack(list(DATA.values())))


def test_slots_are_read_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = torch.randint(0, 255, (4 << 20,), dtype=torch.uint8)
    save_file({"w": data}, tmp_path / "m.safetensors")
    monkeypatch.setattr(LateLane, "block_nbytes", 3 << 20)
    made = LateLane(8 << 20)
    monkeypatch.setattr(mover, "lane_for", lambda device: made)
    out = torch.zeros_like(data)
    lazysd.open(tmp_path / "m.safetensors")["w"].materialize(out=out)
    made.caller.run()
    assert torch.equal(out, data)


def test_other_devices_are_named() -> None:
    with pytest.raises(ValueError, match="xla"):
        lane_for("xla:0")


def test_materialize_on_meta(ckpt: lazysd.Checkpoint) -> None:
    assert ckpt["e0"].materialize(device="meta").is_meta
    assert ckpt["e0"].to("meta").is_meta


def test_out_of_every_kind(ckpt: lazysd.Checkpoint) -> None:
    wanted = DATA["e0"]
    parameter = torch.nn.Parameter(torch.zeros(12, 34))
    assert ckpt["e0"].materialize(out=parameter) is parameter
    assert torch.equal(parameter.detach(), wanted.float())
    wide = torch.zeros(34, 30, dtype=torch.float64)
    ckpt["e0"].materialize(out=wide[:, 3:27:2].T)
    assert torch.equal(wide[:, 3:27:2].T, wanted.double())
    assert wide.count_nonzero() == wanted.count_nonzero()
    with pytest.raises(ValueError, match=r"\[12, 33\].*\[12, 34\]"):
        ckpt["e0"].materialize(out=torch.zeros(12, 33))
    with pytest.raises(ValueError, match="share one place"):
        ckpt["e0"].materialize(out=torch.zeros(12, 1).expand(12, 34))
    conjugated = torch.zeros(12, 34, dtype=torch.complex64)
    ckpt["e0"].materialize(out=conjugated.conj())
    assert torch.equal(conjugated.real, wanted.float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("cut", [(4, 0, 1), (3, 0, 1), (4, 1, 1), (4, 0, 2)])
def test_blocks_are_copied_in_pieces_too_small_for_torchs_threads(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, cut: tuple[int, int, int]
) -> None:
    """Rows of any width, offset and step, of which some can be copied as wider integers and some cannot."""
    less, first, step = cut
    raw = torch.randint(0, 256, (3, 70, 8 * 520), dtype=torch.uint8).view(dtype)
    source = raw[1:, :, first : raw.shape[2] - less : step]
    target = torch.zeros_like(raw)[1:, :, first : raw.shape[2] - less : step]
    assert SERIAL_NUMEL < target.numel() <= HOST_BLOCK_NBYTES
    wanted, sizes, copy = source.clone(), [], torch.Tensor.copy_

    def noted(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        sizes.append(self.numel())
        return copy(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", noted)
        copy_block(target, source)
    assert max(sizes) < 32_768  # at::internal::GRAIN_SIZE
    assert torch.equal(target, wanted)
    whole = target._base
    assert whole is not None
    assert whole.count_nonzero() == wanted.count_nonzero()  # nothing beside it


@pytest.mark.gpu
def test_out_in_pinned_memory(ckpt: lazysd.Checkpoint) -> None:
    for dtype in (torch.int16, torch.float32):
        out = torch.empty(34, 24, dtype=dtype, pin_memory=True)
        ckpt["e0"].T.materialize(out=out[:, ::2])
        assert torch.equal(out[:, ::2], DATA["e0"].T.to(dtype))
        assert out.is_pinned()


def test_out_may_be_what_is_read() -> None:
    tensor = torch.arange(16.0).reshape(4, 4)
    lazysd.from_torch(tensor).T.materialize(out=tensor)
    assert torch.equal(tensor, torch.arange(16.0).reshape(4, 4).T)


@pytest.mark.gpu
@pytest.mark.parametrize("name", graphs(DATA))
def test_cuda_gives_the_same_bytes(ckpt: lazysd.Checkpoint, name: str) -> None:
    lazy, wanted = graphs(dict(ckpt))[name], graphs(DATA)[name]
    made = lazy.materialize(device="cuda")
    assert made.device == torch.device("cuda", torch.cuda.current_device())
    assert torch.equal(made.cpu(), wanted)
    assert torch.equal(lazy.materialize(device="cuda", dtype=torch.float32).cpu(), wanted.float())


@pytest.mark.gpu
def test_cuda_is_ordered_with_the_callers_stream(tmp_path: Path) -> None:
    data = torch.randint(0, 99, (64, 1 << 20), dtype=torch.uint8)
    save_file({"w": data}, tmp_path / "m.safetensors")
    lazy = lazysd.open(tmp_path / "m.safetensors")["w"]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        out = torch.empty(64, 1 << 20, dtype=torch.uint8, device="cuda")
        torch.cuda._sleep(100_000_000)
        out.fill_(7)  # still queued when the fill is asked for
        lazy.materialize(out=out)
        result = out.clone()
    stream.synchronize()
    assert torch.equal(result.cpu(), data)


@pytest.mark.gpu
def test_cuda_target_that_another_stream_uses_next(tmp_path: Path) -> None:
    """Ordered with the stream that is current at the call; another one waits for it, as for any kernel."""
    data = torch.randint(0, 99, (32 << 20,), dtype=torch.uint8)
    save_file({"w": data}, tmp_path / "m.safetensors")
    lazy = lazysd.open(tmp_path / "m.safetensors")["w"]
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(first):
        out = torch.zeros(32 << 20, dtype=torch.uint8, device="cuda")
        lazy.materialize(out=out)
    second.wait_stream(first)
    with torch.cuda.stream(second):
        out.record_stream(second)
        result = out.clone()
    second.synchronize()
    assert torch.equal(result.cpu(), data)


@pytest.mark.gpu
def test_cuda_host_memory_stays_at_the_ring(tmp_path: Path) -> None:
    data = torch.zeros(3 * CUDA_RING_NBYTES, dtype=torch.uint8)
    save_file({"w": data}, tmp_path / "m.safetensors")
    lazysd.open(tmp_path / "m.safetensors")["w"].materialize(device="cuda")
    ring = lane_for(torch.device("cuda", torch.cuda.current_device()))
    assert isinstance(ring, CudaLane)
    assert sum(len(buffer) for buffer, _ in ring._slots) <= CUDA_RING_NBYTES

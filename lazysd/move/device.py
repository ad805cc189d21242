"""Lanes: how a block gets from host memory into a destination, per device. The mover is the same for all of them."""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from operator import itemgetter
from typing import Any

import torch

from ..stores.base import File
from .blocks import HOST_BLOCK_NBYTES
from .workers import default_workers

CUDA_BLOCK_NBYTES = 8 << 20
CUDA_RING_NBYTES = 64 << 20  # pinned host memory a CUDA transfer uses, in all
READ_NBYTES = 1 << 20  # what one thread reads of a ring slot at a time
SERIAL_NUMEL = 32_000  # torch copies fewer than 32768 elements on the calling thread
TRANSPOSE_MIN_NUMEL = 4096  # below this, torch's general copy is as quick as transposing first


class Scratch:
    """Reused host buffers of one thread. First touches of fresh memory cost several times the copy itself."""

    def __init__(self) -> None:
        self._free: list[tuple[int, torch.Tensor]] = []  # (bytes, buffer), smallest first

    def take(self, nbytes: int, device: Any = "cpu") -> torch.Tensor:
        """A flat uint8 buffer of at least `nbytes`."""
        if device != "cpu" and torch.device(device).type != "cpu":
            return torch.empty(nbytes, dtype=torch.uint8, device=device)  # torch caches device memory itself
        at = next((k for k, (size, _) in enumerate(self._free) if size >= nbytes), None)
        if at is not None:
            return self._free.pop(at)[1]
        if self._free:  # replace the largest that is too small rather than grow the pool
            self._free.pop()
        return torch.empty(max(nbytes, 1), dtype=torch.uint8)

    def give(self, buffer: torch.Tensor) -> None:
        """Return a buffer for reuse."""
        if buffer.device.type == "cpu":
            insort(self._free, (buffer.numel(), buffer), key=itemgetter(0))


class Lane:
    """Moves blocks into host memory."""

    block_nbytes = HOST_BLOCK_NBYTES
    is_host = True  # files can be read straight into a dense destination

    def __init__(self) -> None:
        self.scratch = Scratch()

    def buffer(self, nbytes: int) -> torch.Tensor:
        """A host buffer to read a block into; pass it back through `release` when the block has been moved."""
        return self.scratch.take(nbytes)

    def read(self, file: File, parts: list[tuple[memoryview, int]]) -> None:
        """Fill each buffer from its offset in the file."""
        file.read(parts)

    def release(self, buffer: torch.Tensor) -> None:
        """The block in `buffer` has been handed to `move`."""
        self.scratch.give(buffer)

    def move(self, target: torch.Tensor, source: torch.Tensor, buffer: torch.Tensor) -> None:
        """Copy a strided view of `buffer` to a strided target of the same integer dtype."""
        copy_strided(target, source, self.scratch)

    @contextmanager
    def transfer(self, target: torch.Tensor) -> Iterator[None]:
        """Surrounds the filling of one destination."""
        yield


class CudaLane(Lane):
    """Moves blocks to a CUDA device: pinned ring -> copy on a side stream -> strided placement on the GPU.

    A ring slot is reused only after the event recorded behind its copy. The side stream waits for the stream that is
    current when the transfer starts, and that stream waits for the side stream at the end, so the result is ordered
    like any other work of the caller. Everything allocated in between belongs to the side stream, and its memory is
    reused by later work of that stream only. A slot is read by several threads at once: one alone reads a warm file
    slower than the bus takes it.
    """

    block_nbytes = CUDA_BLOCK_NBYTES
    is_host = False

    def __init__(self, device: torch.device, ring_nbytes: int = CUDA_RING_NBYTES) -> None:
        super().__init__()
        self.device = device
        self.block_nbytes = min(self.block_nbytes, max(1, ring_nbytes // 2))
        self.stream = self._new_stream()
        self._num_slots = ring_nbytes // self.block_nbytes
        self._slots: list[tuple[torch.Tensor, Any]] = []  # (pinned buffer, event behind its last copy), oldest first
        self._num_made = 0

    # The seven calls below are all of CUDA that a lane needs; tests replace them to run the ring on a CPU.
    def _new_stream(self) -> Any:
        return torch.cuda.Stream(self.device)

    def _new_event(self) -> Any:
        return torch.cuda.Event()

    def _pinned(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def _current_stream(self) -> Any:
        return torch.cuda.current_stream(self.device)

    def _on(self, stream: Any) -> Any:
        return torch.cuda.stream(stream)

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def _keep(self, target: torch.Tensor) -> None:
        target.record_stream(self.stream)  # memory freed by the caller must not be reused before our copies are done

    def buffer(self, nbytes: int) -> torch.Tensor:
        if self._slots and (self._num_made >= self._num_slots or self._slots[0][1].query()):
            buffer, event = self._slots.pop(0)
            event.synchronize()
            if len(buffer) >= nbytes:
                return buffer
            self._num_made -= 1  # too small, which only a ring of tiny slots can be: let it go and make another
        self._num_made += 1
        return self._pinned(max(nbytes, self.block_nbytes))

    def read(self, file: File, parts: list[tuple[memoryview, int]]) -> None:
        chunks = [
            (held[at : at + READ_NBYTES], offset + at)
            for held, offset in parts
            for at in range(0, len(held), READ_NBYTES)
        ]
        if len(chunks) == 1 or file.cost.num_in_flight > 1:  # such a file reads many at a time by itself
            super().read(file, parts)
        else:
            list(_readers().map(lambda chunk: file.read([chunk]), chunks))  # list() raises what a reader raised

    def release(self, buffer: torch.Tensor) -> None:
        event = self._new_event()
        event.record(self.stream)
        self._slots.append((buffer, event))

    def move(self, target: torch.Tensor, source: torch.Tensor, buffer: torch.Tensor) -> None:
        if target.is_contiguous() and source.is_contiguous():
            self._copy(target, source)
            return
        span = 1 + sum((size - 1) * stride for size, stride in zip(source.shape, source.stride(), strict=True))
        staged = torch.empty(span, dtype=source.dtype, device=target.device)
        self._copy(staged, source.as_strided((span,), (1,)))
        self._copy(target, staged.as_strided(source.shape, source.stride(), 0))

    @contextmanager
    def transfer(self, target: torch.Tensor) -> Iterator[None]:
        caller = self._current_stream()
        self.stream.wait_stream(caller)
        try:
            with self._on(self.stream):
                yield
        finally:
            caller.wait_stream(self.stream)
            self._keep(target)
            self._num_made = len(self._slots)  # a slot that an error took along is made anew


def copy_strided(target: torch.Tensor, source: torch.Tensor, scratch: Scratch) -> None:
    """target[...] = source[...] between views of one integer dtype, quick for transposes.

    torch transposes a dense matrix into a dense one several times faster than into a strided slot, so a transposed
    block goes through a dense copy first; both fit the cache.
    """
    across = _fast_axis(target)
    along = _fast_axis(source)
    if across is None or along is None or across == along:
        copy_block(target, source)
        return
    if target.shape[across] * target.shape[along] < TRANSPOSE_MIN_NUMEL:
        copy_block(target, source)
        return
    others = [k for k in range(target.dim()) if k not in (across, along) and target.shape[k] > 1]
    if others:
        for index in range(target.shape[others[0]]):
            copy_strided(target.select(others[0], index), source.select(others[0], index), scratch)
        return
    order = [k for k in range(target.dim()) if k not in (across, along)] + [along, across]
    into = target.permute(order).reshape(target.shape[along], target.shape[across])  # always a view: the rest is 1
    rows = source.permute(order).transpose(-1, -2).reshape(into.shape[1], into.shape[0])
    held: list[torch.Tensor] = []

    def dense(like: torch.Tensor) -> torch.Tensor:
        nbytes = like.numel() * like.element_size()
        held.append(scratch.take(nbytes))
        return held[-1][:nbytes].view(like.dtype).view(like.shape)

    if not rows.is_contiguous():
        packed = dense(rows)
        copy_block(packed, rows)
        rows = packed
    if into.is_contiguous():
        into.copy_(rows.t())
    else:
        turned = dense(into)
        turned.copy_(rows.t())
        copy_block(into, turned)
    for buffer in held:
        scratch.give(buffer)


def copy_block(target: torch.Tensor, source: torch.Tensor) -> None:
    """target[...] = source[...], a block of the cache's size on the calling thread alone.

    torch would share out a block among its own threads, and wait for all of them; where a core is busy with something
    else, that wait costs ten times the copy. What it shares out is not settable without side effects on other threads.
    """
    if not SERIAL_NUMEL < target.numel() <= HOST_BLOCK_NBYTES or torch.get_num_threads() == 1:
        target.copy_(source)
        return
    wide_target, wide_source = _widened(target), _widened(source)
    if wide_target is not None and wide_source is not None:
        copy_block(wide_target, wide_source)
        return
    axis = next(k for k, size in enumerate(target.shape) if size > 1)
    step = max(1, target.shape[axis] * SERIAL_NUMEL // target.numel())
    for start in range(0, target.shape[axis], step):
        length = min(step, target.shape[axis] - start)
        copy_block(target.narrow(axis, start, length), source.narrow(axis, start, length))


def _widened(view: torch.Tensor) -> torch.Tensor | None:
    """The same bytes as fewer, wider integers, where rows are contiguous; None where they are not, or are wide."""
    ratio = 8 // view.element_size()
    if ratio <= 1 or view.stride(-1) != 1 or view.shape[-1] % ratio or view.storage_offset() % ratio:
        return None
    return None if any(stride % ratio for stride in view.stride()[:-1]) else view.view(torch.int64)


def transposable_blocks(target: torch.Tensor, source: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of one shape, cut where that keeps each block's dense side dense, small enough for the cache.

    Only transposes are cut: along the source's rows, or along the target's where the target is dense.
    """
    across, along = _fast_axis(target), _fast_axis(source)
    if across is None or along is None or across == along:
        yield target, source
        return
    axis = along if target.shape[across] == target.stride(along) else across
    row_nbytes = source.element_size() * source.shape[across + along - axis]
    step = max(1, HOST_BLOCK_NBYTES // row_nbytes)
    for start in range(0, source.shape[axis], step):
        length = min(step, source.shape[axis] - start)
        yield target.narrow(axis, start, length), source.narrow(axis, start, length)


def _fast_axis(tensor: torch.Tensor) -> int | None:
    """The axis along which a view is contiguous."""
    return next((k for k in range(tensor.dim()) if tensor.stride(k) == 1 and tensor.shape[k] > 1), None)


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(default_workers(), thread_name_prefix="lazysd-read")


_local = threading.local()


def lane_for(device: torch.device) -> Lane:
    """This thread's lane to a device, made at first use and kept."""
    lanes: dict[str, Lane] | None = getattr(_local, "lanes", None)
    if lanes is None:
        lanes = _local.lanes = {}
    key = str(device)
    if key not in lanes:
        if device.type == "cuda":
            lanes[key] = CudaLane(device)
        elif device.type == "cpu":
            lanes[key] = Lane()
        else:
            raise ValueError(f"cannot fill tensors on device {device}; materialise on cpu or cuda and move them")
    return lanes[key]

"""The lane to CUDA devices: a ring of pinned buffers, copied on a side stream, placed by the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from ... import dtypes
from ...graph.boxes import Dims
from ...stores.base import File, Parts
from ..workers import default_workers
from .base import Lane, Region, flat, view

if TYPE_CHECKING:
    import torch

CUDA_BLOCK_NBYTES = 8 << 20
CUDA_RING_NBYTES = 64 << 20  # pinned host memory a CUDA transfer uses, in all
READ_NBYTES = 1 << 20  # what one thread reads of a ring slot at a time


class CudaLane(Lane):
    """Moves blocks to a CUDA device: pinned ring -> copy on a side stream -> strided placement on the GPU.

    A ring slot is reused only after the event recorded behind its copy. The side stream waits for the stream that is
    current when the transfer starts, and that stream waits for the side stream at the end, so the result is ordered
    like any other work of the caller. Everything allocated in between belongs to the side stream, and its memory is
    reused by later work of that stream only. A slot is read by several threads at once: one alone reads a warm file
    slower than the bus takes it.
    """

    device_types = ("cuda",)
    block_nbytes = CUDA_BLOCK_NBYTES

    def __init__(self, device: str, ring_nbytes: int = CUDA_RING_NBYTES) -> None:
        super().__init__(device)
        self.block_nbytes = min(self.block_nbytes, max(1, ring_nbytes // 2))
        self.stream = self._new_stream()
        self._num_slots = ring_nbytes // self.block_nbytes
        self._slots: list[tuple[torch.Tensor, Any]] = []  # (pinned buffer, event behind its last copy), oldest first
        self._num_made = 0

    # The seven calls below are all of CUDA that a lane needs; tests replace them to run the ring on a CPU.
    def _new_stream(self) -> Any:
        import torch

        return torch.cuda.Stream(torch.device(self.device))

    def _new_event(self) -> Any:
        import torch

        return torch.cuda.Event()

    def _pinned(self, nbytes: int) -> torch.Tensor:
        import torch

        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def _current_stream(self) -> Any:
        import torch

        return torch.cuda.current_stream(torch.device(self.device))

    def _on(self, stream: Any) -> Any:
        import torch

        return torch.cuda.stream(stream)

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def _keep(self, target: torch.Tensor) -> None:
        target.record_stream(self.stream)  # memory freed by the caller must not be reused before our copies are done

    def memory(self, target: torch.Tensor) -> torch.Tensor:
        return flat(target)

    def scratch(self, nbytes: int) -> torch.Tensor:
        import torch

        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)  # torch caches device memory itself

    def give(self, memory: torch.Tensor) -> None:
        """torch takes it back when nobody holds it."""

    def tensor(self, memory: torch.Tensor, region: Region) -> torch.Tensor:
        return view(memory, region, dtypes.to_torch(region.code))

    def bits(self, memory: torch.Tensor, region: Region) -> torch.Tensor:
        return view(memory, region, dtypes.bits_dtype(region.code))

    def buffer(self, nbytes: int) -> torch.Tensor:
        if self._slots and (self._num_made >= self._num_slots or self._slots[0][1].query()):
            buffer, event = self._slots.pop(0)
            event.synchronize()
            if len(buffer) >= nbytes:
                return buffer
            self._num_made -= 1  # too small, which only a ring of tiny slots can be: let it go and make another
        self._num_made += 1
        return self._pinned(max(nbytes, self.block_nbytes))

    def read(self, file: File, parts: Parts) -> None:
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

    def move(self, memory: torch.Tensor, region: Region, buffer: torch.Tensor, strides: Dims) -> None:
        target = self.bits(memory, region)
        source = self.bits(buffer, region._replace(offset=0, strides=strides))
        if target.is_contiguous() and source.is_contiguous():
            self._copy(target, source)
            return
        span = 1 + sum((size - 1) * stride for size, stride in zip(region.dims, strides, strict=True))
        staged = target.new_empty(span)
        self._copy(staged, source.as_strided((span,), (1,)))
        self._copy(target, staged.as_strided(region.dims, strides, 0))

    def copy(self, memory: torch.Tensor, region: Region, values: torch.Tensor) -> None:
        self.bits(memory, region).copy_(values.view(dtypes.bits_dtype(region.code)))

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


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(default_workers(), thread_name_prefix="lazysd-read")


LANE = CudaLane

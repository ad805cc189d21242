"""The lane to the CPU's own memory: numpy and a kernel, torch only where a tensor is handed in or computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import dtypes
from ...graph.boxes import Dims
from ...stores.base import File, Gather
from .. import transpose
from ..blocks import HOST_BLOCK_NBYTES, Series
from ..kernels.base import Reading, Strided
from ..scratch import Scratch
from .base import Lane, Region, flat, view

if TYPE_CHECKING:
    import torch

ALIASING_NBYTES = 1024  # rows whose pitch is a multiple of it crowd into few sets of a cache
LINE_NBYTES = 64
BUFFER_NBYTES = HOST_BLOCK_NBYTES + HOST_BLOCK_NBYTES // 16  # a block with its gaps: one buffer will do for any
Bytes = np.ndarray[Any, Any]


class HostLane(Lane):
    """Moves blocks within host memory. Targets are torch tensors on the CPU, and flat numpy arrays of bytes."""

    device_types = ("cpu",)
    block_nbytes = HOST_BLOCK_NBYTES

    def memory(self, target: Any) -> Bytes:
        return target if isinstance(target, np.ndarray) else flat(target).numpy()

    def scratch(self, nbytes: int) -> Bytes:
        return self._scratch.take(nbytes)

    def give(self, memory: Bytes) -> None:
        self._scratch.give(memory)

    def tensor(self, memory: Bytes, region: Region) -> torch.Tensor:
        import torch

        return view(torch.from_numpy(memory), region, dtypes.to_torch(region.code))

    def bits(self, memory: Bytes, region: Region) -> Bytes:
        return Strided(memory, region.offset, region.strides).array(region.dims, dtypes.itemsize(region.code))

    def gather(self, memory: Bytes, region: Region, file: File, offset: int, some: Series) -> bool:
        if not (file.has_descriptor and transpose.chosen().reads):
            return False
        file.read(_Gather(memory, region, _reading(region, offset, some), some.target_pitch, self._scratch))
        return True

    def direct(self, memory: Bytes, start: int, nbytes: int) -> memoryview:
        return memory.data[start : start + nbytes]

    def move(self, memory: Bytes, region: Region, buffer: Bytes, strides: Dims) -> None:
        target = Strided(memory, region.offset, region.strides)
        transpose.copy(region.dims, dtypes.itemsize(region.code), target, Strided(buffer, 0, strides))

    def copy(self, memory: Bytes, region: Region, values: torch.Tensor) -> None:
        if values.device.type != "cpu":
            bits = dtypes.bits_dtype(region.code)
            self.tensor(memory, region).view(bits).copy_(values.view(bits))
            return
        target = Strided(memory, region.offset, region.strides)
        source = Strided(flat(values).numpy(), int(values.storage_offset()), values.stride())
        transpose.copy(region.dims, dtypes.itemsize(region.code), target, source)


def _reading(region: Region, offset: int, some: Series) -> Reading:
    """How blocks of a tensor that begins at `offset` are read: rows that would meet in one set of the cache, apart."""
    run, itemsize = some.block.run, dtypes.itemsize(region.code)
    nbytes = row_nbytes = run.hull * itemsize
    gap_nbytes, strides = 0, run.strides
    axis = next((k for k, size in enumerate(region.dims) if size > 1), None)
    if (
        axis is not None
        and not run.loops
        and not strides[axis] * itemsize % ALIASING_NBYTES
        and region.strides[-1] != 1
    ):
        row_nbytes, gap_nbytes = strides[axis] * itemsize, LINE_NBYTES
        strides = (*strides[:axis], strides[axis] + gap_nbytes // itemsize, *strides[axis + 1 :])
    first = run.first * itemsize
    starts = tuple(start * itemsize - first for start in run.starts())
    pitch = some.source_pitch * itemsize
    return Reading(offset + first, some.num_blocks, pitch, starts, nbytes, row_nbytes, gap_nbytes, strides)


class _Gather(Gather):
    """Blocks that a kernel reads and places."""

    def __init__(self, memory: Bytes, region: Region, reading: Reading, pitch: int, scratch: Scratch):
        self._memory, self._region, self._reading, self._pitch, self._scratch = memory, region, reading, pitch, scratch

    def __iter__(self) -> Iterator[tuple[memoryview, int]]:
        reading = self._reading
        buffer = self._scratch.take(max(BUFFER_NBYTES, reading.buffer_nbytes))
        for block in range(reading.num_blocks):
            for start in reading.starts:
                yield buffer.data[: reading.nbytes], reading.offset + block * reading.pitch + start
        self._scratch.give(buffer)

    def by(self, fd: int) -> tuple[int, int, int] | None:
        region = self._region
        buffer = self._scratch.take(max(BUFFER_NBYTES, self._reading.buffer_nbytes))
        target = Strided(self._memory, region.offset, region.strides)
        itemsize = dtypes.itemsize(region.code)
        failed = transpose.chosen().gather(fd, self._reading, buffer, region.dims, itemsize, target, self._pitch)
        self._scratch.give(buffer)
        return failed


LANE = HostLane

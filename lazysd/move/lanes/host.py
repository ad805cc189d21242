"""The lane to the CPU's own memory: numpy and a kernel, torch only where a tensor is handed in or computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ... import dtypes
from ...graph.boxes import Dims
from .. import transpose
from ..blocks import HOST_BLOCK_NBYTES
from ..kernels.base import Strided
from .base import Lane, Region, flat, view

if TYPE_CHECKING:
    import torch

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


LANE = HostLane

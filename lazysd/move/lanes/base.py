"""What a lane is: how elements get into the memory of one kind of device. The mover is the same for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ...graph.boxes import Dims
from ...stores.base import File, Parts
from ..blocks import Series
from ..scratch import Scratch

if TYPE_CHECKING:
    import torch


class Region(NamedTuple):
    """Elements of flat memory. Offset and strides count elements."""

    code: str  # their dtype
    dims: Dims
    offset: int
    strides: Dims


class Lane(ABC):
    """Moves elements into the memory of a device, for one thread. `memory` stands for flat bytes over there.

    A member of this room has a `LANE`, a class that is made of a device's name.
    """

    device_types: ClassVar[tuple[str, ...]]  # as torch names them
    block_nbytes: int  # what is read and placed at a time

    def __init__(self, device: str) -> None:
        self.device = device
        self._scratch = Scratch()

    @abstractmethod
    def memory(self, target: Any) -> Any:
        """The whole memory that a target lies in, in which pieces count their offsets."""

    @abstractmethod
    def scratch(self, nbytes: int) -> Any:
        """Memory of the device for operands, at least so many bytes; pass it back through `give`."""

    @abstractmethod
    def give(self, memory: Any) -> None:
        """Memory from `scratch` is no longer needed."""

    @abstractmethod
    def tensor(self, memory: Any, region: Region) -> torch.Tensor:
        """A region as a torch tensor that shares the memory."""

    @abstractmethod
    def bits(self, memory: Any, region: Region) -> Any:
        """A region as integers of the elements' size: an array or tensor that shares the memory."""

    def direct(self, memory: Any, start: int, nbytes: int) -> memoryview | None:
        """Bytes of the memory that a file can be read into; None where that is not possible."""
        return None

    def gather(self, memory: Any, region: Region, file: File, offset: int, some: Series) -> bool:
        """Read blocks of a tensor that begins at an offset of a file, and put them in their places.

        Args:
            region: of the first block.

        Returns:
            False where that is not possible, and nothing has been done.
        """
        return False

    def buffer(self, nbytes: int) -> Any:
        """A host buffer to read a block into; pass it back through `release` when the block has been moved."""
        return self._scratch.take(nbytes)

    def read(self, file: File, parts: Parts) -> None:
        """Fill each buffer from its offset in the file."""
        file.read(parts)

    def release(self, buffer: Any) -> None:
        """The block in `buffer` has been handed to `move`."""
        self._scratch.give(buffer)

    @abstractmethod
    def move(self, memory: Any, region: Region, buffer: Any, strides: Dims) -> None:
        """Copy elements that lie by `strides` in a buffer, from its start, into a region."""

    @abstractmethod
    def copy(self, memory: Any, region: Region, values: torch.Tensor) -> None:
        """Copy a torch tensor of the region's shape and dtype, wherever it is, bit by bit."""

    @contextmanager
    def transfer(self, target: Any) -> Iterator[None]:
        """Surrounds the filling of one destination."""
        yield


def bytes_of(buffer: Any) -> memoryview:
    """A host buffer of `Lane.buffer` as Python sees bytes."""
    array: np.ndarray[Any, Any] = buffer if isinstance(buffer, np.ndarray) else buffer.numpy()
    return array.data


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """All of the memory behind a tensor, as bytes."""
    import torch

    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, (storage.nbytes(),), (1,))


def view(memory: torch.Tensor, region: Region, dtype: torch.dtype) -> torch.Tensor:
    """A region of flat bytes in one dtype."""
    whole = memory[: len(memory) - len(memory) % dtype.itemsize]
    return whole.view(dtype).as_strided(region.dims, region.strides, region.offset)

"""What a kernel is, and what every kernel refuses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ...graph.boxes import Dims


class Strided(NamedTuple):
    """Where a block's elements lie. Offset and strides count elements; strides may be negative or zero."""

    memory: Any  # flat bytes: a numpy array of uint8, or whatever else has a buffer
    offset: int  # of the block's first element
    strides: Dims

    def array(self, dims: Dims, itemsize: int) -> np.ndarray[Any, Any]:
        """The block as unsigned integers that share the memory. ValueError: it leaves the memory."""
        strides = [stride * itemsize for stride in self.strides]
        return np.ndarray(dims, f"u{itemsize}", self.memory, self.offset * itemsize, strides)


class Reading(NamedTuple):
    """Blocks of a file that are alike but for their places, and how each lies in the buffer that it is read into."""

    offset: int  # of the first block in the file, in bytes
    num_blocks: int
    pitch: int  # from one block to the next, in bytes
    starts: tuple[int, ...]  # of the stretches of a block, in bytes from its beginning
    nbytes: int  # of a stretch
    row_nbytes: int  # a stretch is laid out in rows of so many bytes,
    gap_nbytes: int  # with so many between them: rows must not meet in one set of a cache
    strides: Dims  # of a block's elements in the buffer

    @property
    def buffer_nbytes(self) -> int:
        """What a buffer has to have."""
        rows = -(-self.nbytes // self.row_nbytes)
        return len(self.starts) * (self.nbytes + rows * self.gap_nbytes)


class Kernel(ABC):
    """A way to copy a strided block into a strided block, bit by bit. A member of this room has a `KERNEL`."""

    name: ClassVar[str]
    rank: ClassVar[int]  # the first that is available does the work

    @abstractmethod
    def is_available(self) -> bool:
        """Whether it can be used here and now. Cheap: asked for every block."""

    @property
    def reads(self) -> bool:
        """Whether it has a `gather`."""
        return False

    def gather(
        self, fd: int, reading: Reading, buffer: Any, dims: Dims, itemsize: int, target: Strided, pitch: int
    ) -> tuple[int, int, int] | None:
        """Read blocks by pread into a buffer, one after the other, and copy each to its place.

        Args:
            dims: shape of a block.
            target: where the first block goes.
            pitch: from one block to the next in the target, in elements.

        Returns:
            As `stores.base.Gather.by`.
        """
        raise NotImplementedError

    @abstractmethod
    def copy(self, dims: Dims, itemsize: int, target: Strided, source: Strided) -> None:
        """See `move.transpose.copy`. Works on the calling thread alone, and lets others run meanwhile."""


def check(dims: Dims, itemsize: int, target: Strided, source: Strided) -> None:
    """Refuse what no kernel may do, before a byte is written.

    Raises:
        ValueError: a block leaves its memory, the two share bytes, or elements of the target share a place.
    """
    if itemsize not in (1, 2, 4, 8) or not len(dims) == len(target.strides) == len(source.strides):
        raise ValueError(f"cannot copy {list(dims)} elements of {itemsize} bytes by {target[1:]} and {source[1:]}")
    if min(dims, default=0) < 0:
        raise ValueError(f"cannot copy a block of shape {list(dims)}")
    if not prod(dims):
        return
    if not np.frombuffer(target.memory, np.uint8).flags.writeable:
        raise ValueError("the target's memory is read-only")
    into, out_of = _hull(dims, itemsize, target, "target"), _hull(dims, itemsize, source, "source")
    if into.start < out_of.stop and out_of.start < into.stop:
        raise ValueError("cannot copy between blocks that share memory")
    if shares_places(dims, target.strides):
        raise ValueError(f"cannot copy into strides {list(target.strides)}: several elements share one place")


def _hull(dims: Dims, itemsize: int, block: Strided, name: str) -> range:
    """The addresses from a block's lowest byte to its highest one."""
    memory = np.frombuffer(block.memory, np.uint8)
    reach = [(size - 1) * stride for size, stride in zip(dims, block.strides, strict=True)]
    first = block.offset + sum(min(0, step) for step in reach)
    stop = block.offset + sum(max(0, step) for step in reach) + 1
    if first < 0 or stop * itemsize > len(memory):
        raise ValueError(f"the {name} reaches from element {first} to {stop} of {len(memory)} bytes")
    address: int = memory.__array_interface__["data"][0]
    return range(address + first * itemsize, address + stop * itemsize)


def shares_places(dims: Dims, strides: Dims) -> bool:
    """Whether several elements of a strided block lie in one place, as after torch's expand() or unfold()."""
    axes = sorted((abs(stride), size) for size, stride in zip(dims, strides, strict=True) if size > 1)
    reach = 0
    for stride, size in axes if prod(dims) else ():
        if stride <= reach:  # steps of this axis land among those of the smaller ones: look where each element lies
            return _some_meet(axes)
        reach += (size - 1) * stride
    return False


def _some_meet(axes: list[tuple[int, int]]) -> bool:
    numel, hull = prod(size for _, size in axes), 1 + sum((size - 1) * stride for stride, size in axes)
    if numel > hull:  # more elements than places
        return True
    places = np.zeros(1, np.int64)
    for stride, size in axes:
        places = (places[:, None] + np.arange(size) * stride).reshape(-1)
    return len(np.unique(places)) < numel

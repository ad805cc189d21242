"""From a box of a leaf to the byte ranges that hold it, in blocks small enough to stay in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import NamedTuple

from ..graph.boxes import Box, Dims, box_dims, row_major
from ..stores.base import Cost
from ..stores.local import COST

READ_NBYTES = 256  # of Python objects while a read is asked for: a hull of few bytes takes that much
MIN_RUN_SHARE = 16  # of the gap worth reading along: a run this many times shorter is not worth a read of its own
# What a host copy holds at a time: a block and its transposed copy stay in a core's second-level cache together.
HOST_BLOCK_NBYTES = 1 << 20
TILE_ROWS = 64  # rows of a block that kernels place at a time; a few left over would write parts of cache lines


class Run(NamedTuple):
    """How a box lies in a row-major tensor: `count` equal hulls, each read in one go."""

    first: int  # offset of the first element, in elements of the tensor
    hull: int  # elements from the first to the last one wanted, gaps included, in one hull
    loops: tuple[tuple[int, int], ...]  # (count, pitch in elements) of the axes that separate hulls, outermost first
    strides: Dims  # where the box's elements lie when the hulls are stored one after the other, in elements

    @property
    def num_hulls(self) -> int:
        return prod(count for count, _ in self.loops)

    def nbytes(self, itemsize: int) -> int:
        """Memory that reading it takes: hulls, or what Python holds of many short ones."""
        hull_nbytes = self.hull * itemsize
        return self.num_hulls * (hull_nbytes if self.num_hulls == 1 else max(hull_nbytes, READ_NBYTES))

    def starts(self) -> Iterator[int]:
        """Offset of each hull in the tensor, in elements, in the order of `strides`."""
        for index in product(*(range(count) for count, _ in self.loops)):
            yield self.first + sum(at * pitch for at, (_, pitch) in zip(index, self.loops, strict=True))


def run_of(box: Box, dims: Dims, itemsize: int, exact: bool = False, cost: Cost = COST) -> Run:
    """The reads that fetch a non-empty box of a row-major tensor: hulls merge across small gaps, never large ones.

    With `exact`, runs long enough to be worth a read are read by themselves, however small the gaps. What a gap and a
    read are worth is the `cost` of the file.
    """
    min_run_nbytes = cost.gap_nbytes // MIN_RUN_SHARE
    pitches = row_major(dims)
    first, hull, inner = 0, 1, len(box)
    for k in range(len(box) - 1, -1, -1):
        axis = box[k]
        pitch = axis.step * pitches[k]
        gap = (pitch - hull) * itemsize
        if len(axis) > 1 and gap > (0 if exact and hull * itemsize >= min_run_nbytes else cost.gap_nbytes):
            break
        hull += (len(axis) - 1) * pitch
        inner = k
    strides = [axis.step * pitch for axis, pitch in zip(box, pitches, strict=True)]
    loops, stored = [], hull
    for k in range(inner - 1, -1, -1):
        loops.append((len(box[k]), strides[k]))
        strides[k] = stored
        stored *= len(box[k])
    for axis, pitch in zip(box, pitches, strict=True):
        first += axis[0] * pitch
    return Run(first, hull, tuple(reversed(loops)), tuple(strides))


class Block(NamedTuple):
    """Part of a box, small enough for the scratch buffer."""

    box: Box
    offset: int  # of the part in the destination, relative to the whole box, in elements
    run: Run


class Series(NamedTuple):
    """Blocks that differ in their places alone."""

    block: Block  # the first of them
    num_blocks: int
    source_pitch: int  # from one to the next, in elements of the tensor
    target_pitch: int  # in elements of the destination
    axis: int  # along which they follow each other

    def each(self) -> Iterator[Block]:
        """The blocks one by one."""
        box, offset, run = self.block
        yield self.block
        for k in range(1, self.num_blocks):
            axis = box[self.axis]
            shift = k * len(axis) * axis.step
            moved = range(axis.start + shift, axis.stop + shift, axis.step)
            first = run.first + k * self.source_pitch
            part = (*box[: self.axis], moved, *box[self.axis + 1 :])
            yield Block(part, offset + k * self.target_pitch, run._replace(first=first))


def series(
    box: Box, dims: Dims, itemsize: int, strides: Dims, limit_nbytes: int, exact: bool = False, cost: Cost = COST
) -> Iterator[Series]:
    """Cut a box along its outermost axes until each part's hulls fit `limit_nbytes` (or it is one element)."""
    pitches = row_major(dims)
    stack = [(box, 0)]
    while stack:
        part, offset = stack.pop()
        run = run_of(part, dims, itemsize, exact, cost)
        nbytes = run.nbytes(itemsize)
        axis = next((k for k, indices in enumerate(part) if len(indices) > 1), None)
        if nbytes <= limit_nbytes or axis is None:
            yield Series(Block(part, offset, run), 1, 0, 0, 0)
            continue
        size = len(part[axis])
        step = max(1, min(size - 1, size * limit_nbytes // nbytes))
        step -= step % TILE_ROWS if step > TILE_ROWS else 0
        first = _between(part, axis, 0, step)
        run = run_of(first, dims, itemsize, exact, cost)
        count = size // step if run.nbytes(itemsize) <= limit_nbytes else 0
        if count:
            pitch = step * part[axis].step * pitches[axis]
            yield Series(Block(first, offset, run), count, pitch, step * strides[axis], axis)
        starts = range(count * step, size, step)
        stack.extend((_between(part, axis, at, at + step), offset + at * strides[axis]) for at in reversed(starts))


def _between(box: Box, axis: int, start: int, stop: int) -> Box:
    """The part of a box from one index to another of an axis."""
    return (*box[:axis], box[axis][start:stop], *box[axis + 1 :])


def blocks(
    box: Box, dims: Dims, itemsize: int, strides: Dims, limit_nbytes: int, exact: bool = False, cost: Cost = COST
) -> Iterator[Block]:
    """The blocks of `series`, one by one."""
    for some in series(box, dims, itemsize, strides, limit_nbytes, exact, cost):
        yield from some.each()


def byte_ranges(
    box: Box, dims: Dims, itemsize: int, limit_nbytes: int, exact: bool = False, cost: Cost = COST
) -> Iterator[tuple[int, int]]:
    """(offset, nbytes), relative to the tensor's first byte, of every read that fetches the box."""
    for block in blocks(box, dims, itemsize, row_major(box_dims(box)), limit_nbytes, exact, cost):
        for start in block.run.starts():
            yield start * itemsize, block.run.hull * itemsize

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


class Run(NamedTuple):
    """How a box lies in a row-major tensor: `count` equal hulls, each read in one go."""

    first: int  # offset of the first element, in elements of the tensor
    hull: int  # elements from the first to the last one wanted, gaps included, in one hull
    loops: tuple[tuple[int, int], ...]  # (count, pitch in elements) of the axes that separate hulls, outermost first
    strides: Dims  # where the box's elements lie when the hulls are stored one after the other, in elements

    @property
    def num_hulls(self) -> int:
        return prod(count for count, _ in self.loops)

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


def blocks(
    box: Box,
    dims: Dims,
    itemsize: int,
    strides: Dims,
    limit_nbytes: int,
    exact: bool = False,
    cost: Cost = COST,
) -> Iterator[Block]:
    """Cut a box along its outermost axes until each part's hulls fit `limit_nbytes` (or it is one element)."""
    stack = [(box, 0)]
    while stack:
        part, offset = stack.pop()
        run = run_of(part, dims, itemsize, exact, cost)
        nbytes = run.num_hulls * (run.hull * itemsize if run.num_hulls == 1 else max(run.hull * itemsize, READ_NBYTES))
        axis = next((k for k, indices in enumerate(part) if len(indices) > 1), None)
        if nbytes <= limit_nbytes or axis is None:
            yield Block(part, offset, run)
            continue
        size = len(part[axis])
        step = max(1, min(size - 1, size * limit_nbytes // nbytes))
        cuts = range(0, size, step)
        stack.extend(
            ((*part[:axis], part[axis][at : at + step], *part[axis + 1 :]), offset + at * strides[axis])
            for at in reversed(cuts)
        )


def byte_ranges(
    box: Box, dims: Dims, itemsize: int, limit_nbytes: int, exact: bool = False, cost: Cost = COST
) -> Iterator[tuple[int, int]]:
    """(offset, nbytes), relative to the tensor's first byte, of every read that fetches the box."""
    for block in blocks(box, dims, itemsize, row_major(box_dims(box)), limit_nbytes, exact, cost):
        for start in block.run.starts():
            yield start * itemsize, block.run.hull * itemsize

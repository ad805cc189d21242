"""Reading tensors side by side, tile by tile, to learn something of each: what compare() and stats() do.

Tiles are filled by the one mover, into memory that each worker reuses; how large they are follows from the budget.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .errors import MemoryBudgetError
from .graph.boxes import Box, box_dims, full_box, tiles
from .graph.compute import Computed
from .graph.node import NODE_NBYTES, Node
from .graph.walk import dense_pieces, nodes, pieces
from .move import workers
from .move.tiling import glue, tile_limit
from .sizes import format_nbytes, parse_size

PREFERRED_TILE_NBYTES = 8 << 20
MOST_NBYTES = 32 << 20  # of a tile that must stay whole, to read rows of the source once
SMALLEST_TILE_NBYTES = 64 << 10
_GROUP_NBYTES = 200  # of memory, besides the nodes
_FIXED_NBYTES = 12 << 20  # for each worker: the mover's blocks, temporaries of a chunk, what malloc keeps
_COMPUTED_NBYTES = 20 << 20  # more where values are computed on the way, as in a save

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Group = Sequence[Node]  # tensors of one shape, read side by side


class Tile(NamedTuple):
    """A box of every tensor of a group, dense; the memory is reused after the call."""

    number: int  # of the group
    box: Box
    codes: list[str]  # each tensor's dtype
    held: list[Bytes]  # each tensor's elements, flat


def stream(
    groups: Sequence[Group],
    visit: Callable[[Tile], Any],
    num_workers: int | None = None,
    max_memory: int | str = "128MB",
    report: Callable[[int, int], None] | None = None,
    result_nbytes: int = 0,
    opened_nbytes: int = 0,
) -> None:
    """Call `visit` on tiles that cover every group once, from several threads; a group's tiles come in any order.

    Args:
        groups: tensors of one shape each; groups without elements are left out.
        visit: takes a Tile whose tensors are valid during the call.
        num_workers: threads; None uses the CPUs there are, as far as `max_memory` allows.
        max_memory: bytes that the graphs, tiles, temporaries and results take at most, or "128MB".
        report: called as report(done_nbytes, total_nbytes) of the first tensors.
        result_nbytes: of memory that the caller keeps of each group.
        opened_nbytes: of memory that opening has taken, and that objects use again.

    Raises:
        MemoryBudgetError: `max_memory` is less than one worker needs.
    """
    num_nodes = sum(1 for _ in nodes(node for group in groups for node in group))
    held_nbytes = max(NODE_NBYTES * num_nodes + (_GROUP_NBYTES + result_nbytes) * len(groups), opened_nbytes)
    computes = any(_is_computed(node) for group in groups for node in group)
    crew, most = _crew(groups, num_workers, parse_size(max_memory), held_nbytes, computes)
    if computes:
        import torch  # noqa: F401 - before the crew begins, which has it use one thread each
    total = sum(group[0].nbytes for group in groups)
    done, lock, own = 0, threading.Lock(), threading.local()

    def work(job: tuple[int, Box]) -> None:
        nonlocal done
        number, box = job
        if not hasattr(own, "buffers"):
            own.buffers = {}
        group = groups[number]
        held = [_filled(node, box, k, own.buffers) for k, node in enumerate(group)]
        visit(Tile(number, box, [node.code for node in group], held))
        with lock:
            done += prod(box_dims(box)) * groups[number][0].itemsize
            if report is not None:
                report(done, total)

    workers.run(_jobs(groups, most), work, crew)


def _crew(
    groups: Sequence[Group], num_workers: int | None, budget: int, held_nbytes: int, computes: bool
) -> tuple[int, int]:
    """How many workers the budget feeds, and how large a tile of one tensor may be."""
    sides = max((len(group) for group in groups), default=1)
    fixed = _FIXED_NBYTES + (_COMPUTED_NBYTES if computes else 0)
    smallest = held_nbytes + fixed + sides * SMALLEST_TILE_NBYTES
    if budget < smallest:
        raise MemoryBudgetError(
            f"max_memory {format_nbytes(budget)} is too little to read {len(groups)} tensors"
            f"{' side by side' if sides > 1 else ''}; the smallest that would do is {-(-smallest // 1_000_000)}MB"
        )
    budget -= held_nbytes
    wanted = workers.asked(num_workers)
    useful = fixed + sides * min(PREFERRED_TILE_NBYTES, 1 << 20)
    crew = max(1, min(wanted, budget // useful))
    return crew, min(MOST_NBYTES, (budget // crew - fixed) // sides)


def _is_computed(node: Node) -> bool:
    """Whether a tensor's first element is computed; as a rule its others are then as well."""
    if not all(node.dims):
        return False
    first = tuple(range(1) for _ in node.dims)
    return any(isinstance(piece.node.op, Computed) for piece in pieces(node, first, 0, (1,) * len(first)))


def _jobs(groups: Sequence[Group], most: int) -> Iterator[tuple[int, Box]]:
    """Tiles of every group, cut so that the side with transposed rows reads them whole."""
    for number, group in enumerate(groups):
        if not all(group[0].dims):
            continue
        widest = max(group, key=lambda node: node.itemsize)
        box, room = full_box(widest.dims), min(PREFERRED_TILE_NBYTES, most)
        limit = max(tile_limit(node, box, room, most) for node in group)
        for tile in tiles(box, widest.itemsize, min(limit, most)):
            yield number, tile


def _filled(node: Node, box: Box, place: int, buffers: dict[int, Bytes]) -> Bytes:
    """A box of a node in this worker's memory for the group's tensor number `place`."""
    from .move.fill import fill

    nbytes = prod(box_dims(box)) * node.itemsize
    if place not in buffers or len(buffers[place]) < nbytes:
        buffers[place] = np.empty(nbytes, np.uint8)
    fill(buffers[place], glue(dense_pieces(node, box)))
    return buffers[place][:nbytes]


def place_in(box: Box, flat: int) -> tuple[int, ...]:
    """The index in the tensor of element number `flat` of a box."""
    index = []
    for axis in reversed(box):
        flat, at = divmod(flat, len(axis))
        index.append(axis[at])
    return tuple(reversed(index))

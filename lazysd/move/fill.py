"""The one data mover: fill a destination with pieces of nodes.

A notebook slice, a CUDA tensor, a rank's shard, a tile of an output file, a side of a comparison: all are this call.
Structural ops have already become strides (graph.ops.pieces), so what is left is: leaves, copied block by block from
their file to their final place, and computed nodes, calculated in tiles over operands that are filled the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ReadError
from ..graph.base import Piece
from ..graph.boxes import Box, box_dims, full_box, is_dense, row_major
from ..graph.compute import Computed
from ..graph.leaves import FileRange, Full, InMemory
from ..graph.node import Node
from ..graph.walk import pieces
from .blocks import Block, run_of, series
from .lanes import lane_for
from .lanes.base import Lane, Region, bytes_of
from .tiling import compute_tiles

if TYPE_CHECKING:
    import torch


class _Ready(NamedTuple):
    """A computed tile whose operands are filled."""

    piece: Piece
    memory: Any
    operands: list[torch.Tensor]
    scratch: list[Any]


class _Tile(NamedTuple):
    piece: Piece
    memory: Any  # flat, of the lane's device


def fill(target: Any, wanted: Iterable[Piece], exact: bool = False) -> None:
    """Fill `target` with pieces whose offsets count elements of `target`'s storage.

    Reads each piece's byte ranges and nothing else (`exact`: without gaps, see blocks.run_of). Holds one block (host)
    or the pinned ring (CUDA), plus, for computed nodes, one tile of operands.

    Args:
        target: a torch tensor, or flat host memory: a numpy array of bytes, which is its own storage.

    Raises:
        ReadError, SourceChangedError, ClosedCheckpointError: from the source files.
    """
    device = str(getattr(target, "device", "cpu"))  # numpy has such a name too, since version 2
    if device == "meta":
        return
    lane = lane_for(device)
    with lane.transfer(target):
        memory = lane.memory(target)
        for piece in wanted:  # one by one: there may be many
            _fill_piece(memory, piece, lane, exact)


def _fill_piece(memory: Any, wanted: Piece, lane: Lane, exact: bool) -> None:
    """One piece, and everything that computing it needs."""
    stack: list[Any] = [_Tile(wanted, memory)]
    while stack:
        item = stack.pop()
        if isinstance(item, _Ready):
            op = item.piece.node.op
            assert isinstance(op, Computed)
            view = lane.bits if op.by_bits else lane.tensor
            op.compute(view(item.memory, _region(item.piece)), item.operands, item.piece.box)
            for scratch in item.scratch:
                lane.give(scratch)
            continue
        piece, into = item
        op = piece.node.op
        if isinstance(op, FileRange):
            _from_file(into, piece, op, lane, exact)
        elif isinstance(op, InMemory):
            held = op.values()
            if held.is_meta:
                raise ReadError(f"a tensor of shape {list(held.shape)} is on meta: it has no values to read")
            values = held[tuple(slice(axis.start, axis.stop, axis.step) for axis in piece.box)]
            lane.copy(into, _region(piece), values)
            op.values()  # not edited meanwhile
        elif isinstance(op, Full):
            lane.tensor(into, _region(piece)).fill_(op.value)
        elif isinstance(op, Computed):
            parts = compute_tiles(piece)
            if len(parts) > 1:
                stack.extend(_Tile(part, into) for part in reversed(parts))
            else:
                stack.extend(_operands(parts[0], op, into, lane))
        else:
            raise TypeError(f"{type(op).__name__} is neither structural, a leaf nor computed")


def fill_node(target: torch.Tensor, node: Node, box: Box | None = None) -> None:
    """Fill `target` (any strides, shape of the box) with a box of a node."""
    box = full_box(node.dims) if box is None else box
    fill(target, pieces(node, box, int(target.storage_offset()), target.stride()))


def _region(piece: Piece) -> Region:
    return Region(piece.node.code, box_dims(piece.box), piece.offset, piece.strides)


def _operands(piece: Piece, op: Computed, memory: Any, lane: Lane) -> list[Any]:
    """Scratch tensors for a tile's operands; the work that fills them, then the tile itself (a stack: last first)."""
    operands: list[torch.Tensor] = []
    held: list[Any] = []
    work: list[_Tile] = []
    for node, box in op.operands(piece.node, piece.box):
        dims = box_dims(box)
        scratch = lane.scratch(prod(dims) * node.itemsize)
        view = lane.bits if op.by_bits else lane.tensor
        operands.append(view(scratch, Region(node.code, dims, 0, row_major(dims))))
        held.append(scratch)
        work.extend(_Tile(part, scratch) for part in pieces(node, box, 0, row_major(dims)))
    return [_Ready(piece, memory, operands, held), *work]


def _from_file(memory: Any, piece: Piece, op: FileRange, lane: Lane, exact: bool) -> None:
    """File bytes to their final place. Straight into the destination where both sides are contiguous."""
    node, box = piece.node, piece.box
    itemsize, dims = node.itemsize, box_dims(box)
    if is_dense(dims, piece.strides):
        run = run_of(box, node.dims, itemsize, cost=op.file.cost)
        if run.num_hulls == 1 and run.hull == prod(dims):  # one stretch without gaps
            direct = lane.direct(memory, piece.offset * itemsize, run.hull * itemsize)
            if direct is not None:
                op.file.read([(direct, op.offset + run.first * itemsize)])
                return
    for some in series(box, node.dims, itemsize, piece.strides, lane.block_nbytes, exact, op.file.cost):
        region = Region(node.code, box_dims(some.block.box), piece.offset + some.block.offset, piece.strides)
        if not lane.gather(memory, region, op.file, op.offset, some):
            for block in some.each():
                _block(memory, piece, op, lane, block)


def _block(memory: Any, piece: Piece, op: FileRange, lane: Lane, block: Block) -> None:
    """Read a block and put it in its place."""
    run, itemsize = block.run, piece.node.itemsize
    hull_nbytes = run.hull * itemsize
    buffer = lane.buffer(hull_nbytes * run.num_hulls)
    held = bytes_of(buffer)
    places = enumerate(run.starts())
    lane.read(
        op.file,
        [(held[n * hull_nbytes : (n + 1) * hull_nbytes], op.offset + start * itemsize) for n, start in places],
    )
    region = Region(piece.node.code, box_dims(block.box), piece.offset + block.offset, piece.strides)
    lane.move(memory, region, buffer, run.strides)
    lane.release(buffer)

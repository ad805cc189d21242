"""The one data mover: fill a destination with pieces of nodes.

A notebook slice, a CUDA tensor, a rank's shard, a tile of an output file, a side of a comparison: all are this call.
Structural ops have already become strides (graph.ops.pieces), so what is left is: leaves, copied block by block from
their file to their final place, and computed nodes, calculated in tiles over operands that are filled the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

import torch

from .. import dtypes
from ..graph.base import Piece
from ..graph.boxes import Box, box_dims, full_box, is_dense, row_major
from ..graph.compute import Computed
from ..graph.leaves import FileRange, Full, InMemory
from ..graph.node import Node
from ..graph.walk import pieces
from .blocks import blocks, run_of
from .device import Lane, copy_strided, lane_for, transposable_blocks
from .tiling import compute_tiles


class _Ready(NamedTuple):
    """A computed tile whose operands are filled."""

    piece: Piece
    target: torch.Tensor
    operands: list[torch.Tensor]
    buffers: list[torch.Tensor]


class _Tile(NamedTuple):
    piece: Piece
    target: torch.Tensor


def fill(target: torch.Tensor, wanted: Iterable[Piece], exact: bool = False) -> None:
    """Fill `target` with pieces whose offsets count elements of `target`'s storage.

    Reads each piece's byte ranges and nothing else (`exact`: without gaps, see blocks.run_of). Holds one block (host)
    or the pinned ring (CUDA), plus, for computed nodes, one tile of operands.

    Raises:
        ReadError, SourceChangedError, ClosedCheckpointError: from the source files.
    """
    if target.device.type == "meta":
        return
    lane = lane_for(target.device)
    with lane.transfer(target):
        for piece in wanted:  # one by one: there may be many
            _fill_piece(target, piece, lane, exact)


def _fill_piece(target: torch.Tensor, wanted: Piece, lane: Lane, exact: bool) -> None:
    """One piece, and everything that computing it needs."""
    stack: list[Any] = [_Tile(wanted, target)]
    while stack:
        item = stack.pop()
        if isinstance(item, _Ready):
            view = _strided(item.target, item.piece)
            item.piece.node.op.compute(view, item.operands, item.piece.box)  # type: ignore[attr-defined]
            for buffer in item.buffers:
                lane.scratch.give(buffer)
            continue
        piece, into = item
        op = piece.node.op
        if isinstance(op, FileRange):
            _from_file(into, piece, op, lane, exact)
        elif isinstance(op, InMemory):
            _from_memory(into, piece, op, lane)
        elif isinstance(op, Full):
            _strided(into, piece).fill_(op.value)
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


def _operands(piece: Piece, op: Computed, target: torch.Tensor, lane: Lane) -> list[Any]:
    """Scratch tensors for a tile's operands; the work that fills them, then the tile itself (a stack: last first)."""
    operands: list[torch.Tensor] = []
    buffers: list[torch.Tensor] = []
    work: list[_Tile] = []
    for node, box in op.operands(piece.node, piece.box):
        dims = box_dims(box)
        nbytes = prod(dims) * node.itemsize
        buffer = lane.scratch.take(nbytes, target.device)
        operand = buffer[:nbytes].view(dtypes.to_torch(node.code)).view(dims)
        operands.append(operand)
        buffers.append(buffer)
        work.extend(_Tile(part, operand) for part in pieces(node, box, 0, row_major(dims)))
    return [_Ready(piece, target, operands, buffers), *work]


def _strided(target: torch.Tensor, piece: Piece) -> torch.Tensor:
    return target.as_strided(box_dims(piece.box), piece.strides, piece.offset)


def _bytes_of(flat: torch.Tensor) -> memoryview:
    array: Any = flat.numpy()
    return memoryview(array)


def _bits(tensor: torch.Tensor, code: str) -> torch.Tensor:
    """The same storage as integers: copies then preserve every bit pattern."""
    return tensor.view(dtypes.bits_dtype(code)) if tensor.dtype != dtypes.bits_dtype(code) else tensor


def _from_file(target: torch.Tensor, piece: Piece, op: FileRange, lane: Lane, exact: bool) -> None:
    """File bytes to their final place. Straight into the destination where both sides are contiguous."""
    node, box = piece.node, piece.box
    itemsize, dims = node.itemsize, box_dims(box)
    bits = _bits(target, node.code)
    if lane.is_host and is_dense(dims, piece.strides):
        run = run_of(box, node.dims, itemsize, cost=op.file.cost)
        if run.num_hulls == 1 and run.hull == prod(dims):  # one stretch without gaps
            flat = bits.as_strided((run.hull,), (1,), piece.offset).view(torch.uint8)
            op.file.read([(_bytes_of(flat), op.offset + run.first * itemsize)])
            return
    for block in blocks(box, node.dims, itemsize, piece.strides, lane.block_nbytes, exact, op.file.cost):
        run, hull_nbytes = block.run, block.run.hull * itemsize
        nbytes = hull_nbytes * run.num_hulls
        buffer = lane.buffer(nbytes)
        held = _bytes_of(buffer)
        places = enumerate(run.starts())
        lane.read(
            op.file,
            [(held[n * hull_nbytes : (n + 1) * hull_nbytes], op.offset + start * itemsize) for n, start in places],
        )
        shape = box_dims(block.box)
        source = buffer[:nbytes].view(bits.dtype).as_strided(shape, run.strides, 0)
        lane.move(bits.as_strided(shape, piece.strides, piece.offset + block.offset), source, buffer)
        lane.release(buffer)


def _from_memory(target: torch.Tensor, piece: Piece, op: InMemory, lane: Lane) -> None:
    """A tensor in memory to its final place; on the CPU block by block, so that transposes stay in the cache."""
    code = piece.node.code
    source = _bits(op.values(), code)[tuple(slice(axis.start, axis.stop, axis.step) for axis in piece.box)]
    into = _strided(_bits(target, code), piece)
    if source.device.type != "cpu" or into.device.type != "cpu":
        into.copy_(source)
    else:
        for part, rows in transposable_blocks(into, source):
            copy_strided(part, rows, lane.scratch)
    op.values()  # not edited meanwhile

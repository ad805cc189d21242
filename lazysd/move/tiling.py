"""How work is cut up: tiles whose source bytes are read in one go, pieces joined where they share source rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import prod

from ..graph.base import Piece
from ..graph.boxes import Box, box_dims, tiles
from ..graph.compute import Computed
from ..graph.leaves import FileRange
from ..graph.node import Node
from ..graph.walk import below, dense_pieces
from .blocks import run_of

COMPUTE_TILE_NBYTES = 8 << 20  # of a computed tile: operands, temporaries, result


def is_gappy(wanted: Iterable[Piece], exact: bool = False) -> bool:
    """Whether some leaf's bytes lie between others that are not wanted, closely enough to be read along."""
    for piece in wanted:
        if isinstance(piece.node.op, FileRange):
            count = prod(map(len, piece.box))
            if count == prod(piece.node.dims):  # the whole of it
                continue
            run = run_of(piece.box, piece.node.dims, piece.node.itemsize, exact, piece.node.op.file.cost)
            if run.hull * run.num_hulls > count:
                return True
    return False


def tile_limit(node: Node, box: Box, preferred_nbytes: int, most_nbytes: int) -> int:
    """Bytes a tile of this box should have: the preferred size, unless that cuts through rows of the source.

    A transposed expert is read as whole rows of the source, so it stays in one tile as long as `most_nbytes` allows.
    """
    itemsize = node.itemsize
    nbytes = itemsize * prod(box_dims(box))
    if nbytes <= preferred_nbytes:
        return preferred_nbytes
    limits = [preferred_nbytes]
    for axis in box:  # one index of the outermost axes at a time: an expert, then finer
        if len(axis) > 1:
            limits.append(nbytes // len(axis))
            break
    limits.append(nbytes)
    for limit in sorted(limit for limit in limits if preferred_nbytes <= limit <= most_nbytes):
        if not _reads_gaps(node, next(tiles(box, itemsize, limit))):
            return limit
    return min(preferred_nbytes, most_nbytes) if _reads_gaps(node, box) else min(most_nbytes, nbytes)


def _reads_gaps(node: Node, box: Box) -> bool:
    """Whether filling a box of a node, computed or not, reads along what is not wanted."""
    return is_gappy(below(dense_pieces(node, box), compute_tiles))


MAX_UNGLUED = 64  # pieces that wait for a neighbour: what joins stands close together, and there may be millions


def glue(wanted: Iterable[Piece]) -> Iterator[Piece]:
    """Join neighbouring pieces of one leaf that also neighbour each other in the destination, one by one.

    Gate and up of one expert are alternate stretches of the same source rows; glued, they are read once.
    """
    joined: deque[Piece] = deque()
    for piece in wanted:
        while joined and (both := _join(joined[-1], piece)) is not None:
            joined.pop()
            piece = both
        joined.append(piece)
        if len(joined) > MAX_UNGLUED:
            yield joined.popleft()
    yield from joined


def _join(first: Piece, second: Piece) -> Piece | None:
    if first.node is not second.node or isinstance(first.node.op, Computed):
        return None
    different = [k for k, (a, b) in enumerate(zip(first.box, second.box, strict=True)) if a != b]
    if len(different) != 1:
        return None
    (k,) = different
    a, b = first.box[k], second.box[k]
    if a.step != 1 or b.step != 1 or a.stop != b.start:
        return None
    stride = first.strides[k] if len(a) > 1 else second.strides[k] if len(b) > 1 else second.offset - first.offset
    if stride <= 0 or second.offset != first.offset + len(a) * stride:  # no view of torch's goes backwards
        return None
    for n, axis in enumerate(first.box):
        alike = first.strides[n] == second.strides[n]
        if n == k:
            alike = (len(a) == 1 or first.strides[k] == stride) and (len(b) == 1 or second.strides[k] == stride)
        if not alike and len(axis) > 1:
            return None
    box = (*first.box[:k], range(a.start, b.stop), *first.box[k + 1 :])
    return Piece(first.node, box, first.offset, (*first.strides[:k], stride, *first.strides[k + 1 :]))


def compute_tiles(piece: Piece) -> list[Piece]:
    """A piece of a computed node, cut so that all that a tile takes stays near COMPUTE_TILE_NBYTES."""
    op = piece.node.op
    assert isinstance(op, Computed)
    sides = [(piece.node.itemsize, prod(box_dims(piece.box)))]
    sides += [(node.itemsize, prod(box_dims(box))) for node, box in op.operands(piece.node, piece.box)]
    total = sum(itemsize * count for itemsize, count in sides) + op.temporary_nbytes * max(n for _, n in sides)
    limit = max(1, prod(box_dims(piece.box)) * piece.node.itemsize * COMPUTE_TILE_NBYTES // max(total, 1))
    limit = max(limit, op.least_elements(piece.node, piece.box) * piece.node.itemsize)
    starts = [axis.start for axis in piece.box]
    result = []
    parts = _columns(piece.box, op, limit // piece.node.itemsize)
    for box in (tile for part in parts for tile in tiles(part, piece.node.itemsize, limit, op.align)):
        offset = piece.offset + sum(
            (axis.start - start) // axis.step * stride
            for axis, start, stride in zip(box, starts, piece.strides, strict=True)
        )
        result.append(Piece(piece.node, box, offset, piece.strides))
    return result


def _columns(box: Box, op: Computed, limit: int) -> list[Box]:
    """A box cut into stretches of columns, where `limit` elements are too few for whole rows of an op's blocks."""
    width = op.align_columns
    if width == 1 or box[-1].step != 1:
        return [box]
    wide = max(width, limit // max(1, min(op.align, len(box[-2]))) // width * width)
    *lead, axis = box
    edges = [axis.start, *range(axis.start // width * width + wide, axis.stop, wide), axis.stop]
    return [(*lead, range(start, stop)) for start, stop in pairwise(edges)]

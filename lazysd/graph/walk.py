"""The walks over a graph: a request down to its leaves, on through what is computed, and every node once.

All are iterative: a graph may be as deep as there are ops in a program, far deeper than Python's stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .base import Piece, Structural
from .boxes import Box, Dims, box_dims, full_box, row_major
from .compute import Computed
from .node import Node

N = TypeVar("N", bound=Node)


def pieces(node: Node, box: Box, offset: int, strides: Dims) -> Iterator[Piece]:
    """Follow a request through structural ops down to leaves and computed nodes. Reads nothing.

    Pieces come one by one as they are asked for: a strided view of a reshape can have one for every row.
    """
    stack: list[Iterator[Piece]] = [iter((Piece(node, box, offset, strides),))]
    while stack:
        piece = next(stack[-1], None)
        if piece is None:
            stack.pop()
        elif all(piece.box):
            if isinstance(op := piece.node.op, Structural):
                stack.append(op.route(piece))
            else:
                yield piece


def dense_pieces(node: Node, box: Box | None = None, offset: int = 0) -> Iterator[Piece]:
    """The pieces that fill a row-major destination with a box, or with the whole."""
    box = full_box(node.dims) if box is None else box
    return pieces(node, box, offset, row_major(box_dims(box)))


def below(wanted: Iterable[Piece], cut: Callable[[Piece], Iterable[Piece]] = lambda piece: (piece,)) -> Iterator[Piece]:
    """Every piece that filling `wanted` needs, on through computed nodes: leaves, and computed nodes before theirs.

    Args:
        wanted: pieces at leaves and computed nodes, as pieces() gives them.
        cut: how the mover cuts a piece of a computed node before it asks for operands.
    """
    stack = [iter(wanted)]
    while stack:
        piece = next(stack[-1], None)
        if piece is None:
            stack.pop()
            continue
        yield piece
        if isinstance(piece.node.op, Computed):
            stack.append(_operands(cut(piece)))


def _operands(tiles: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces that tiles of a computed node ask for."""
    for tile in tiles:
        op = tile.node.op
        assert isinstance(op, Computed)
        for node, box in op.operands(tile.node, tile.box):
            yield from dense_pieces(node, box)


def nodes(roots: Iterable[N]) -> Iterator[N]:
    """Every node of the graphs once, inputs before what is made of them, in an order that only the graphs decide."""
    done: set[int] = set()
    for root in roots:
        stack = [root]
        while stack:
            node = stack[-1]
            waiting = [part for part in node.inputs if id(part) not in done]
            if waiting and id(node) not in done:
                stack.extend(reversed(waiting))
                continue
            stack.pop()
            if id(node) not in done:
                done.add(id(node))
                yield node


def is_deeper(root: Node, limit: int) -> bool:
    """Whether more than `limit` nodes lie on some way down."""
    level = [root]
    for _ in range(limit):
        level = list({id(part): part for node in level for part in node.inputs}.values())
        if not level:
            return False
    return True

"""What every op is: the base classes, and the request that walks down a graph (walk.py walks)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from .boxes import Box, Dims

if TYPE_CHECKING:
    from .node import Node

Inputs = Sequence["Node"]


class Piece(NamedTuple):
    """Fill part of a destination with a box of a node."""

    node: Node
    box: Box  # which elements of the node, one range an axis
    offset: int  # where the box's first element goes, in elements of the destination's storage
    strides: Dims  # how the destination advances along each axis of the box, in elements


class Op:  # without ABCMeta, by which isinstance() takes ten times as long, and walks ask it of every piece
    """What a node does. `dims` and `code` below are shape and dtype, as in Node."""

    is_view: ClassVar[bool] = False  # the same elements, all of them, in another order or shape

    @abstractmethod
    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        """Shape and dtype of the result; ValueError, with both sides named, where the inputs do not fit."""

    @abstractmethod
    def describe(self, node: Node) -> str:
        """A few words for repr()."""


class Structural(Op):
    """An op that only moves elements."""

    @abstractmethod
    def route(self, piece: Piece) -> Iterator[Piece]:
        """The same request, on the inputs. Every element of the box is asked for exactly once."""


class Leaf(Op):
    """Where a walk ends: bytes of a file, a tensor in memory, a constant."""

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        raise TypeError(f"{type(self).__name__} has no inputs; build the node with its shape and dtype")

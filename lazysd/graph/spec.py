"""A graph as a list of rows, each naming its inputs by their place: what a deep graph is pickled as."""

from __future__ import annotations

from typing import Any

from .node import Node
from .walk import nodes

Row = tuple[type[Node], Any, tuple[int, ...], tuple[int, ...], str]  # class, op, inputs, dims, code


def flatten(root: Node) -> list[Row]:
    """The rows of a graph, inputs first, the root last."""
    place: dict[int, int] = {}
    rows: list[Row] = []
    for node in nodes([root]):
        place[id(node)] = len(rows)
        rows.append((type(node), node.op, tuple(place[id(part)] for part in node.inputs), node.dims, node.code))
    return rows


def rebuild(rows: list[Row]) -> Node:
    """The root of a graph from its rows."""
    made: list[Node] = []
    for kind, op, inputs, dims, code in rows:
        made.append(kind(op, tuple(made[place] for place in inputs), dims, code))
    return made[-1]

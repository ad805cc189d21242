"""The graph of a tensor as a picture and as text: the result on top, its inputs below, what looks alike drawn once."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from .. import dtypes
from ..graph.leaves import FileRange
from ..graph.node import Node
from ..graph.ops import Stack
from .page import Html, cut, shown

MAX_DEPTH = 6
MAX_CHILDREN = 4  # drawn of one node, after folding
MAX_BOXES = 40
MAX_LABEL = 100  # characters


def type_of(node: Node, dims: tuple[int, ...] | None = None) -> str:
    """Dtype and shape, "bf16[768, 2048]"."""
    return cut(f"{dtypes.DTYPES[node.code].label}[{', '.join(map(str, node.dims if dims is None else dims))}]", 60)


class Drawn(NamedTuple):
    """A node of the picture: one or several siblings that look alike."""

    label: str
    num_alike: int
    depth: int
    parent: int  # index of the node it feeds; -1 for the result

    @property
    def text(self) -> str:
        """The label, and of how many nodes."""
        return cut(f"{self.label}  × {self.num_alike:,}" if self.num_alike > 1 else self.label, MAX_LABEL)


def drawn_of(root: Node) -> list[Drawn]:
    """What to draw, inputs after what they feed; nodes that look alike are one box with a count."""
    drawn: list[Drawn] = []
    todo: list[tuple[list[Node] | str, int, int, int]] = [([root], 1, 0, -1)]
    while todo:
        alike, count, depth, parent = todo.pop()
        if len(drawn) >= MAX_BOXES:
            drawn.append(Drawn("… the rest of the graph", 1, 0, -1))
            break
        if isinstance(alike, str):
            drawn.append(Drawn(alike, count, depth, parent))
            continue
        drawn.append(Drawn(f"{_label(alike)}  {type_of(alike[0])}", count, depth, parent))
        for label, number in _inner_stacks(alike[0], count):
            depth += 1
            drawn.append(Drawn(label, number, depth, len(drawn) - 1))
        below = _below(alike, depth, len(drawn) - 1)
        todo.extend(reversed(below))
    return drawn


def _below(alike: list[Node], depth: int, here: int) -> list[tuple[list[Node] | str, int, int, int]]:
    """The inputs of nodes that look alike, grouped again; capped in depth and number."""
    groups: dict[object, dict[int, Node]] = {}  # a node that feeds several is one node
    for child in (child for node in alike for child in node.inputs):
        groups.setdefault((_kind(child), child.dims, child.code), {})[id(child)] = child
    below: list[tuple[list[Node] | str, int, int, int]] = [
        (list(group.values()), len(group), depth + 1, here) for group in groups.values()
    ]
    if depth + 1 >= MAX_DEPTH and below:
        return [("…", sum(item[1] for item in below), depth + 1, here)]
    if len(below) > MAX_CHILDREN:
        rest = sum(item[1] for item in below[MAX_CHILDREN:])
        return [*below[:MAX_CHILDREN], ("… and others", rest, depth + 1, here)]
    return below


def _inner_stacks(node: Node, count: int) -> list[tuple[str, int]]:
    """Of a stack over several axes (experts, and gate and up of each), the stacks within: label and how many."""
    if not isinstance(node.op, Stack):
        return []
    lead = node.op.lead
    return [
        (f"stack of {size}  {type_of(node, node.dims[at:])}", count * prod(lead[:at]))
        for at, size in enumerate(lead)
        if at
    ]


def graph_text(root: Node) -> str:
    """The graph as indented lines."""
    return "\n".join("  " * box.depth + box.text for box in drawn_of(root))


def graph_svg(root: Node) -> Html:
    """The graph as a picture."""
    drawn = drawn_of(root)
    row_height, indent, glyph = 30, 24, 7.3
    parts, width = [], 0.0
    for at, box in enumerate(drawn):
        x, y, wide = box.depth * indent, at * row_height, len(box.text) * glyph + 14
        width = max(width, x + wide)
        if box.parent >= 0:
            start = drawn[box.parent].depth * indent + 10
            parts.append(f'<path d="M{start} {box.parent * row_height + 23}V{y + 13}H{x}"/>')
        parts.append(f'<rect x="{x + 0.5}" y="{y + 2.5}" width="{wide:.0f}" height="21" rx="4"/>')
        parts.append(f'<text x="{x + 7}" y="{y + 17}" xml:space="preserve">{shown(box.text)}</text>')
    return Html(
        f'<svg role="img" aria-label="graph of the tensor" width="{width + 2:.0f}" height="{len(drawn) * row_height}">'
        f"{''.join(parts)}</svg>"
    )


def _label(alike: list[Node]) -> str:
    """What one node is, or what nodes that look alike have in common."""
    first, op = alike[0], alike[0].op
    if len(alike) == 1 or not isinstance(op, FileRange):
        return op.describe(first)
    paths = {node.op.file.path for node in alike if isinstance(node.op, FileRange)}
    return op.file.path.rsplit("/", 1)[-1] if len(paths) == 1 else f"{len(paths)} files"


def _kind(node: Node) -> object:
    """What makes siblings look alike: the ops on the way down their first inputs, not where the data lies."""
    kinds: list[type] = []
    while len(kinds) < MAX_DEPTH:
        kinds.append(type(node.op))
        if not node.inputs:
            break
        node = node.inputs[0]
    return tuple(kinds)

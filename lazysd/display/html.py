"""Checkpoints and tensors as static HTML: a folded tree of keys, the graph of a tensor as SVG. No script, no reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, NamedTuple

from .. import dtypes
from ..errors import LazysdError
from ..graph.leaves import FileRange
from ..graph.node import Node
from ..move.materialize import reads as reads_of
from ..sizes import format_nbytes
from .text import Row, fold, printable

MAX_ROWS = 500  # of the tree of keys
MAX_DEPTH = 6  # of the graph
MAX_CHILDREN = 4  # drawn of one node, after folding
MAX_BOXES = 40  # drawn of one graph
MAX_READS = 8  # byte ranges listed
MAX_NAME = 160  # characters shown of one name

STYLE = """<style>
.lazysd{font:13px/1.5 system-ui,sans-serif;color:inherit;overflow-x:auto}
.lazysd code,.lazysd td,.lazysd text{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px}
.lazysd details{margin-left:1.2em}.lazysd>details,.lazysd details.top{margin-left:0}
.lazysd summary{cursor:pointer}.lazysd p{margin:0}
.lazysd table{border-collapse:collapse;border:0;margin:0 0 0 1.2em;table-layout:auto}
.lazysd tr,.lazysd tr:hover{background:none!important}
.lazysd td{padding:0 1em 0 0;text-align:left;border:0;background:none;white-space:pre}
.lazysd td.num{text-align:right}
.lazysd .dim{opacity:.65}
.lazysd rect{fill:none;stroke:currentColor;stroke-opacity:.5}
.lazysd path{fill:none;stroke:currentColor;stroke-opacity:.4}
.lazysd text{fill:currentColor}
</style>"""


def to_html(shown: Any) -> str:
    """HTML for a Checkpoint (any mapping of lazy tensors) or a LazyTensor. Reads no tensor data.

    >>> import torch, lazysd
    >>> "<svg" in to_html(lazysd.from_torch(torch.zeros(2, 3)).T)
    True
    """
    body = _tensor(shown) if isinstance(shown, Node) else _checkpoint(shown)
    return f'{STYLE}<div class="lazysd">{body}</div>'


def _text(text: object) -> str:
    return escape(_short(printable(str(text))))


def _short(text: str) -> str:
    """The beginning and the end of a name that would not fit."""
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME // 2]}…{text[-MAX_NAME // 2 :]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _checkpoint(ckpt: Mapping[str, Node]) -> str:
    nbytes = format_nbytes(sum(node.nbytes for node in ckpt.values()))
    try:
        layout = getattr(ckpt, "layout", None) or "no known layout"
    except LazysdError:
        layout = "mixed layouts"
    path = getattr(ckpt, "path", None)
    where = f"<br><code>{_text(path)}</code>" if path else ""
    rows = fold(ckpt)
    tree = _Branch.of(rows[:MAX_ROWS])
    left = sum(row.num_keys for row in rows[MAX_ROWS:])
    more = f'<p class="dim">… and {_count(left, "more tensor")}</p>' if left else ""
    head = f"<b>Checkpoint</b>: {_count(len(ckpt), 'tensor')}, {nbytes}, {_text(layout)}{where}"
    return f"{head}{''.join(tree.html())}{more}"


class _Branch(NamedTuple):
    """Keys below a common prefix."""

    branches: dict[str, _Branch]
    rows: list[tuple[str, Row]]  # last word of the name

    @classmethod
    def of(cls, rows: list[Row]) -> _Branch:
        root = cls({}, [])
        for row in rows:
            *path, last = row.name.split(".") if row.name.count(".") < 32 else [row.name]
            branch = root
            for word in path:
                branch = branch.branches.setdefault(word, cls({}, []))
            branch.rows.append((last, row))
        return root

    def lone(self) -> tuple[str, Row] | None:
        """The only row below, if there is only one, under its remaining name."""
        if len(self.rows) + len(self.branches) != 1:
            return None
        if self.rows:
            return self.rows[0]
        (word, branch), *_ = self.branches.items()
        found = branch.lone()
        return found and (f"{word}.{found[0]}", found[1])

    def total(self) -> tuple[int, int]:
        """(tensors, bytes) below."""
        parts = [(row.num_keys, row.nbytes) for _, row in self.rows] + [b.total() for b in self.branches.values()]
        return sum(count for count, _ in parts), sum(nbytes for _, nbytes in parts)

    def html(self, depth: int = 0) -> Iterator[str]:
        lines = list(self.rows)  # a branch of one row (norm, weight) needs no fold of its own
        folded = []
        for word, branch in self.branches.items():
            if (only := branch.lone()) is not None:
                lines.append((f"{word}.{only[0]}", only[1]))
            else:
                folded.append((word, branch))
        if lines:
            yield "<table>"
            for name, row in lines:
                times = f"× {row.num_keys}" if row.num_keys > 1 else ""
                yield f"<tr><td>{escape(_short(name))}</td><td>{row.type}</td><td>{times}</td>"
                yield f'<td class="num">{format_nbytes(row.nbytes)}</td></tr>'
            yield "</table>"
        for word, branch in folded:
            while not branch.rows and len(branch.branches) == 1:  # a.b.c in one line
                (below, branch), *_ = branch.branches.items()
                word = f"{word}.{below}"
            count, nbytes = branch.total()
            is_open = " open" if depth < 1 else ""
            yield f"<details{is_open}><summary><code>{escape(_short(word))}</code> "
            yield f'<span class="dim">{_count(count, "tensor")}, {format_nbytes(nbytes)}</span></summary>'
            yield from branch.html(depth + 1)
            yield "</details>"


def _tensor(node: Node) -> str:
    ranges = reads_of(node)
    nbytes = sum(size for _, _, size in ranges)
    files = len({path for path, _, _ in ranges})
    listed = "".join(
        f'<tr><td>{_text(path.rsplit("/", 1)[-1])}</td><td class="num">{start}</td><td class="num">{size}</td></tr>'
        for path, start, size in ranges[:MAX_READS]
    )
    more = f"<tr><td>… and {len(ranges) - MAX_READS} more</td></tr>" if len(ranges) > MAX_READS else ""
    reads = (
        f'<details class="top"><summary>materialize() reads {format_nbytes(nbytes)} in {_count(len(ranges), "range")} '
        f'of {_count(files, "file")}</summary><table><tr><td>file</td><td class="num">offset</td>'
        f'<td class="num">bytes</td></tr>{listed}{more}</table></details>'
        if ranges
        else "<p>materialize() reads no file</p>"
    )
    return f"<b>{type(node).__name__}</b> {_text(_type(node))}, {format_nbytes(node.nbytes)}{_graph(node)}{reads}"


def _type(node: Node) -> str:
    return f"{dtypes.DTYPES[node.code].label}[{', '.join(map(str, node.dims))}]"


class _Drawn(NamedTuple):
    """A node of the picture: one or several siblings that look alike."""

    label: str
    num_alike: int
    depth: int
    parent: int  # index of the node it feeds; -1 for the result


def _graph(root: Node) -> str:
    """The graph, result on top, inputs below and indented; nodes that look alike are one box with a count."""
    drawn: list[_Drawn] = []
    todo: list[tuple[list[Node] | str, int, int, int]] = [([root], 1, 0, -1)]
    while todo:
        alike, count, depth, parent = todo.pop()
        here = len(drawn)
        if here >= MAX_BOXES:
            drawn.append(_Drawn("… the rest of the graph", 1, 0, -1))
            break
        if isinstance(alike, str):
            drawn.append(_Drawn(alike, count, depth, parent))
            continue
        drawn.append(_Drawn(f"{_label(alike)}  {_type(alike[0])}", count, depth, parent))
        groups: dict[object, dict[int, Node]] = {}  # a node that feeds several is one node
        for child in (child for node in alike for child in node.inputs):
            groups.setdefault((_kind(child), child.dims, child.code), {})[id(child)] = child
        below: list[tuple[list[Node] | str, int, int, int]] = [
            (list(group.values()), len(group), depth + 1, here) for group in groups.values()
        ]
        if depth + 1 >= MAX_DEPTH and below:
            below = [("…", sum(item[1] for item in below), depth + 1, here)]
        elif len(below) > MAX_CHILDREN:
            rest = sum(item[1] for item in below[MAX_CHILDREN:])
            below = [*below[:MAX_CHILDREN], ("… and others", rest, depth + 1, here)]
        todo.extend(reversed(below))
    return _svg(drawn)


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


def _svg(drawn: list[_Drawn]) -> str:
    row_height, indent, glyph = 30, 24, 7.3
    parts = []
    width = 0.0
    for at, box in enumerate(drawn):
        label = f"{box.label}  × {box.num_alike}" if box.num_alike > 1 else box.label
        label = label if len(label) <= 100 else label[:99] + "…"
        x, y, wide = box.depth * indent, at * row_height, len(label) * glyph + 14
        width = max(width, x + wide)
        if box.parent >= 0:
            start = drawn[box.parent].depth * indent + 10
            parts.append(f'<path d="M{start} {box.parent * row_height + 23}V{y + 13}H{x}"/>')
        parts.append(f'<rect x="{x + 0.5}" y="{y + 2.5}" width="{wide:.0f}" height="21" rx="4"/>')
        parts.append(f'<text x="{x + 7}" y="{y + 17}" xml:space="preserve">{_text(label)}</text>')
    height = len(drawn) * row_height
    return (
        f'<svg role="img" aria-label="graph of the tensor" width="{width + 2:.0f}" height="{height}" '
        f'style="display:block;margin:6px 0;max-width:none">{"".join(parts)}</svg>'
    )

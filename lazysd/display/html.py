"""Checkpoints and tensors as HTML: a folded tree of keys, the graph of a tensor as a picture. Reads no tensor data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..graph.node import Node
from ..sizes import format_nbytes
from ..stores.strict_json import printable
from . import page
from .graph import graph_svg, graph_text, type_of
from .page import Html, counted, facts, more, name, shown
from .text import Row, fold, listed

MAX_READS = 8  # byte ranges listed
MAX_LINES = 30  # of the tree as plain text
TEXT_WIDTH = 80
OPEN_ROWS = 12  # a tree of no more rows than that stands open


def to_html(what: Any, title: str = "Checkpoint", about: Iterable[tuple[str, object]] = ()) -> str:
    """HTML for a Checkpoint (any mapping of lazy tensors) or a LazyTensor.

    >>> import torch, lazysd
    >>> "<svg" in to_html(lazysd.from_torch(torch.zeros(2, 3)).T)
    True

    Args:
        what: the mapping or the tensor.
        title: what to call a mapping.
        about: what is known of a mapping beside its tensors, a word and a sentence each.
    """
    return _tensor(what) if isinstance(what, Node) else _checkpoint(what, title, list(about))


def _checkpoint(tensors: Mapping[str, Node], title: str, about: list[tuple[str, object]]) -> str:
    nbytes = format_nbytes(sum(node.nbytes for node in tensors.values()))
    rows = fold(tensors)
    count = page.fitting(row.name for row in rows)
    tree = "".join(_Branch.of(rows[:count]).html(len(rows)))
    left = more(sum(row.num_keys for row in rows[count:]), "tensor")
    head = f"{counted(len(tensors), 'tensor')}, {nbytes}"
    text = [
        f"{title}: {head}",
        *(f"{word:8} {printable(str(said))}" for word, said in about),
        listed(rows, MAX_LINES, TEXT_WIDTH),
    ]
    return page.frame(f"<p><b>{shown(title)}</b>: {head}</p>{facts(about)}<ul>{tree}</ul>{left}", "\n".join(text))


class _Branch(NamedTuple):
    """Keys below a common prefix."""

    branches: dict[str, _Branch]
    rows: list[tuple[str, Row]]  # last word of the name

    @classmethod
    def of(cls, rows: Sequence[Row]) -> _Branch:
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

    def html(self, num_rows: int, depth: int = 0) -> Iterator[str]:
        lines = list(self.rows)  # a branch of one row (norm, weight) needs no fold of its own
        folded = []
        for word, branch in self.branches.items():
            if (only := branch.lone()) is not None:
                lines.append((f"{word}.{only[0]}", only[1]))
            else:
                folded.append((word, branch))
        for word, row in lines:
            times = f'<span class="c">{f"× {row.num_keys:,}" if row.num_keys > 1 else ""}</span> '
            kind = f'<span class="y">{shown(row.type)}</span>'
            yield f'<li class="r">{name(word)} {kind} {times}<span class="s">{format_nbytes(row.nbytes)}</span></li>'
        for word, branch in folded:
            while not branch.rows and len(branch.branches) == 1:  # a.b.c in one line
                (below, branch), *_ = branch.branches.items()
                word = f"{word}.{below}"
            count, nbytes = branch.total()
            is_open = " open" if depth < 1 or num_rows <= OPEN_ROWS else ""
            yield f"<li><details{is_open}><summary>{name(word)} "
            yield f'<span class="y">{counted(count, "tensor")}</span> <span class="c"></span> '
            yield f'<span class="s">{format_nbytes(nbytes)}</span>'
            yield "</summary><ul>"
            yield from branch.html(num_rows, depth + 1)
            yield "</ul></details></li>"


def _tensor(node: Node) -> str:
    from ..move.materialize import reads as reads_of

    ranges = reads_of(node)
    nbytes, files = sum(size for _, _, size in ranges), len({path for path, _, _ in ranges})
    cost = f"reads {format_nbytes(nbytes)} in {counted(len(ranges), 'range')} of {counted(files, 'file')}"
    rows = [(path.rsplit("/", 1)[-1], f"{start:,}", f"{size:,}") for path, start, size in ranges]
    listing = page.table(("file", "offset", "bytes"), rows, "range", MAX_READS)
    said = f"materialize() {cost if ranges else 'reads no file'}"
    below = f"<details><summary>{said}</summary>{listing}</details>" if ranges else f"<p>{said}</p>"
    head = f"{type_of(node)}, {format_nbytes(node.nbytes)}"
    kind = type(node).__name__
    return page.frame(
        f"<p><b>{kind}</b> {shown(head)}</p>{graph_svg(node)}{below}", f"{kind} {head}\n{graph_text(node)}\n{said}"
    )


__all__ = ["Html", "to_html"]

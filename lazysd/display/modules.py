"""Keys as a tree of modules, each with what it holds; repeated siblings are one branch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..sizes import format_nbytes
from .columns import aligned
from .text import Row

INDENT = "  "


@dataclass
class Branch:
    """A module of the tree."""

    name: str
    num_keys: int = 0
    nbytes: int = 0
    type: str = ""  # of a tensor, not of a module
    below: dict[str, Branch] = field(default_factory=dict)


def grown(rows: Iterable[Row]) -> Branch:
    """The tree of folded rows."""
    root = Branch("")
    for row in rows:
        path = [root]
        for word in row.name.split("."):
            path.append(path[-1].below.setdefault(word, Branch(word)))
        path[-1].type = row.type
        for branch in path:
            branch.num_keys, branch.nbytes = branch.num_keys + row.num_keys, branch.nbytes + row.nbytes
    return root


def module_tree(rows: Iterable[Row], depth: int | None = None, width: int | None = None) -> str:
    """The modules of folded rows, indented, each with its tensors and bytes.

    Args:
        rows: what display.text.fold gives.
        depth: levels to show; what is deeper counts in its module's line. None shows all.
        width: characters a line may have.
    """
    lines = list(_lines(grown(rows), depth))
    return "\n".join(aligned(lines, right=(1, 3), width=width))


def _lines(root: Branch, depth: int | None) -> Iterator[tuple[str, str, str, str]]:
    todo = [(branch, 0) for branch in reversed(list(root.below.values()))]
    while todo:
        branch, level = todo.pop()
        name = branch.name
        while not branch.type and len(branch.below) == 1:  # a module of one child is one line with it
            (branch,) = branch.below.values()
            name = f"{name}.{branch.name}"
        count = f"{branch.num_keys:,} tensor{'s' if branch.num_keys != 1 else ''}"
        yield INDENT * level + name, count, branch.type, format_nbytes(branch.nbytes)
        if depth is None or level + 1 < depth:
            todo.extend((below, level + 1) for below in reversed(list(branch.below.values())))

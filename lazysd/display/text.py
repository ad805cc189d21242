"""Keys for people: repeated siblings fold into one line, and nothing a file says can reach the terminal raw."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import NamedTuple

from .. import dtypes
from ..graph.boxes import Dims
from ..graph.node import Node
from ..sizes import format_nbytes
from ..stores.strict_json import printable
from .columns import aligned

Numbers = tuple[int, ...]
MAX_NUMBERS = 8  # of a key that take part in folding; keys of models have two or three


class Row(NamedTuple):
    """Keys that differ only in numbers and agree in dtype and shape."""

    name: str  # "layers.{0-47}.mlp.gate.weight"; control characters are escaped
    code: str
    dims: Dims
    num_keys: int
    nbytes: int  # of all of them together
    keys: tuple[str, ...]  # the keys themselves, in the mapping's order

    @property
    def type(self) -> str:
        """Dtype and shape of one tensor, "bf16[768, 2048]"."""
        return f"{dtypes.DTYPES[self.code].label}[{', '.join(map(str, self.dims))}]"

    @property
    def times(self) -> str:
        """The type, and of how many tensors, "bf16[768, 2048] x 12"."""
        return self.type + (f" x {self.num_keys}" if self.num_keys > 1 else "")


def fold(tensors: Mapping[str, Node]) -> list[Row]:
    """Keys as rows, in the order in which the first key of each row stands. Exact: no row names a key that is absent.

    >>> import torch, lazysd
    >>> w = lazysd.from_torch(torch.zeros(3))
    >>> [row.name for row in fold({"l.0.w": w, "l.1.w": w, "l.1.b": w, "norm": w})]
    ['l.{0-1}.w', 'l.1.b', 'norm']
    """
    kinds = {key: (node.code, node.dims) for key, node in tensors.items()}
    rows = fold_keys(kinds)
    return [
        Row(name, *kinds[keys[0]], len(keys), sum(tensors[key].nbytes for key in keys), keys) for name, keys in rows
    ]


def fold_keys(kinds: Mapping[str, Hashable]) -> list[tuple[str, tuple[str, ...]]]:
    """(name, keys) of each row: keys of one kind that differ only in numbers. Otherwise as `fold`."""
    groups: dict[tuple[tuple[str | None, ...], Hashable], dict[Numbers, str]] = {}
    order: dict[str, int] = {}
    for at, (key, kind) in enumerate(kinds.items()):
        order[key] = at
        numbers, frame = _parse(key)
        groups.setdefault((frame, kind), {})[numbers] = key
    found = []
    for (frame, _), members in groups.items():
        for lists in _products(list(members)):
            keys = sorted((members[numbers] for numbers in product(*lists)), key=order.__getitem__)
            places = iter(lists)
            name = ".".join(_shown(next(places)) if word is None else printable(word) for word in frame)
            found.append((name, tuple(keys)))
    return sorted(found, key=lambda row: order[row[1][0]])


def tree(tensors: Mapping[str, Node], max_rows: int | None = None, width: int | None = None) -> str:
    """The keys of a checkpoint, folded, one line each with dtype, shape, how many, and bytes. Reads nothing.

    >>> import torch, lazysd
    >>> w = lazysd.from_torch(torch.zeros(2, 3))
    >>> print(tree({f"layers.{n}.gate.weight": w for n in range(4)}))
    layers.{0-3}.gate.weight  f32[2, 3] x 4  96 B

    Args:
        tensors: a Checkpoint or any mapping of keys to lazy tensors.
        max_rows: lines to show at most; the last one says what was left out.
        width: characters a line may have; names are cut in the middle to fit.
    """
    return listed(fold(tensors), max_rows, width)


def listed(rows: Sequence[Row], max_rows: int | None = None, width: int | None = None) -> str:
    """Folded rows, one line each; see tree()."""
    shown = rows if max_rows is None else rows[:max_rows]
    lines = aligned([(row.name, row.times, format_nbytes(row.nbytes)) for row in shown], right=(2,), width=width)
    if len(shown) < len(rows):
        count = sum(row.num_keys for row in rows[len(shown) :])
        lines.append(f"… and {count} more tensors in {len(rows) - len(shown)} rows")
    return "\n".join(lines)


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as people write them: 0, 1, 2, 5 -> "0-2,5"."""
    ordered = sorted(set(numbers))
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b != a + 1)]
    stops = [*(a for a, b in pairwise(ordered) if b != a + 1), ordered[-1]]
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(starts, stops, strict=True))


def _parse(key: str) -> tuple[Numbers, tuple[str | None, ...]]:
    """The numbers of a key, at most MAX_NUMBERS of them, and its words with None where those stood."""
    numbers: list[int] = []
    frame: list[str | None] = []
    for word in key.split("."):
        is_number = len(numbers) < MAX_NUMBERS and _is_number(word)
        frame.append(None if is_number else word)
        if is_number:
            numbers.append(int(word))
    return tuple(numbers), tuple(frame)


def _is_number(word: str) -> bool:
    """Plain decimal without leading zeros and of sane length: anything else must keep its spelling."""
    return word.isascii() and word.isdigit() and len(word) < 10 and str(int(word)) == word


def _shown(numbers: Numbers) -> str:
    return f"{{{ranges(numbers)}}}" if len(numbers) > 1 else str(numbers[0])


def _products(members: list[Numbers]) -> Iterator[tuple[Numbers, ...]]:
    """Cut a set of number tuples into full products, each given as one list of numbers a place."""
    if not members[0]:
        yield ()
        return
    rest_of: dict[int, list[Numbers]] = {}
    for first, *rest in members:
        rest_of.setdefault(first, []).append(tuple(rest))
    alike: dict[frozenset[Numbers], list[int]] = {}
    for first, rests in rest_of.items():
        alike.setdefault(frozenset(rests), []).append(first)
    for tails, firsts in alike.items():
        for lists in _products(sorted(tails)):
            yield (tuple(sorted(firsts)), *lists)

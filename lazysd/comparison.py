"""Comparing tensors bit by bit, tile by tile: never more than two tiles in memory, whatever the tensors' size."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from . import dtypes
from .graph.boxes import Box, box_dims, full_box, tiles
from .move import workers
from .move.fill import fill
from .move.tiling import glue, pieces_of, tile_limit
from .peft.equality import unlike
from .save.jobs import PREFERRED_TILE_NBYTES
from .tensor.lazy import LazyTensor

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

MOST_NBYTES = 32 << 20  # a tile that must stay whole, to read rows of the source once


class Difference(NamedTuple):
    """The first place where two tensors of one key differ."""

    key: str
    kind: (
        str  # "missing", "extra", "shape", "dtype", "values"; of adapters "scale", "rank", "setting", "adapter_config"
    )
    detail: str
    position: tuple[int, ...] | None = None  # of the first differing element
    num_different: int = 0  # elements with other bits; other kinds leave it 0


@dataclass
class Comparison:
    """What comparing two mappings found."""

    num_equal: int = 0
    compared_nbytes: int = 0
    differences: list[Difference] = field(default_factory=list)
    values: bool = True  # whether elements were compared, and not only keys, shapes and dtypes
    unknown: list[str] = field(default_factory=list)  # what neither side states, so that nothing could be compared

    @property
    def equal(self) -> bool:
        """Whether nothing that was looked at differs: keys, shapes, dtypes, what adapters state, and all bits."""
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        rows = [
            d._asdict() | {"position": list(d.position) if d.position is not None else None} for d in self.differences
        ]
        return {
            "equal": self.equal,
            "values_compared": self.values,
            "not_compared": self.unknown,
            "equal_tensors": self.num_equal,
            "compared_nbytes": self.compared_nbytes,
            "differences": rows,
        }


def compare(
    ours: Mapping[str, LazyTensor],
    theirs: Mapping[str, LazyTensor],
    names: tuple[str, str] = ("first", "second"),
    num_workers: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
    values: bool = True,
) -> Comparison:
    """Compare two mappings: keys, shapes, dtypes, and every bit (NaN payloads included).

    Reads both sides in tiles of a few megabytes for each worker; with values=False, reads nothing.
    """
    result = Comparison(values=values)
    for key in theirs:
        if key not in ours:
            result.differences.append(Difference(key, "missing", f"only in {names[1]}"))
    both = []
    for key, node in ours.items():
        if key not in theirs:
            result.differences.append(Difference(key, "extra", f"only in {names[0]}"))
        elif node.dims != theirs[key].dims:
            shapes = f"{list(node.dims)} in {names[0]}, {list(theirs[key].dims)} in {names[1]}"
            result.differences.append(Difference(key, "shape", shapes))
        elif node.code != theirs[key].code:
            result.differences.append(
                Difference(key, "dtype", f"{node.code} in {names[0]}, {theirs[key].code} in {names[1]}")
            )
        else:
            both.append(key)
    if not values:
        result.num_equal = len(both)
        return result
    total = sum(ours[key].nbytes for key in both)
    found: dict[str, list[Difference]] = {}
    lock = threading.Lock()

    def work(job: tuple[str, Box]) -> None:
        key, box = job
        here, there = ours[key], theirs[key]
        nbytes = prod(box_dims(box)) * here.itemsize
        different = _differ(key, here, there, box) if here is not there else None
        with lock:
            result.compared_nbytes += nbytes
            if different:
                found.setdefault(key, []).append(different)
            report(result.compared_nbytes, total)

    workers.run(_jobs(ours, theirs, both), work, num_workers or workers.default_workers())
    for key in both:
        if key in found:
            first = min(found[key], key=lambda difference: difference.position or ())
            count = sum(difference.num_different for difference in found[key])
            detail = f"{count} of {ours[key].numel()} elements differ; {first.detail}"
            result.differences.append(first._replace(num_different=count, detail=detail))
        else:
            result.num_equal += 1
    return result


def compare_adapters(
    result: Comparison, ours: Checkpoint, theirs: Checkpoint, names: tuple[str, str] = ("first", "second")
) -> None:
    """Add to a comparison how the settings of two adapters differ: the same factors alone are not the same adapter.

    Both sides are in one layout. Checkpoints that are no adapters add nothing.
    """
    found, unknown = unlike(ours, theirs, names)
    result.differences += [Difference(*difference) for difference in found]
    result.unknown += unknown


def _jobs(
    ours: Mapping[str, LazyTensor], theirs: Mapping[str, LazyTensor], keys: list[str]
) -> Iterator[tuple[str, Box]]:
    """Tiles of every tensor, cut so that the side with transposed rows reads them whole."""
    for key in keys:
        box, itemsize = full_box(ours[key].dims), ours[key].itemsize
        limit = max(tile_limit(node, box, PREFERRED_TILE_NBYTES, MOST_NBYTES) for node in (ours[key], theirs[key]))
        for tile in tiles(box, itemsize, limit):
            yield key, tile


def _differ(key: str, here: LazyTensor, there: LazyTensor, box: Box) -> Difference | None:
    """The first differing element of a tile."""
    dims = box_dims(box)
    if not prod(dims):
        return None
    values = []
    for node in (here, there):
        tile = torch.empty(dims, dtype=dtypes.to_torch(node.code))
        fill(tile, glue(pieces_of(node, box)))
        values.append(tile)
    a, b = (tile.view(dtypes.bits_dtype(here.code)) for tile in values)
    if torch.equal(a, b):
        return None
    unequal = (a != b).flatten().nonzero().flatten()
    at = int(unequal[0])
    index = []
    for axis in reversed(box):
        at, place = divmod(at, len(axis))
        index.append(axis[place])
    index.reverse()
    place_in_tile = tuple(i - axis.start for i, axis in zip(index, box, strict=True))
    left, right = (tile[place_in_tile].item() for tile in values)
    shown = f"the first at {list(index)}: {left!r} against {right!r}"
    if left == right or left != left:
        bits = tuple(int(tile[place_in_tile].item()) for tile in (a, b))
        shown += f" (bits {bits[0]:#x} against {bits[1]:#x})"
    return Difference(key, "values", shown, tuple(index), len(unequal))

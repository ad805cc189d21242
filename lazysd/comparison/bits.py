"""Comparing tensors bit by bit, tile by tile, and measuring how far they lie apart on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from ..counting.values import NUMBERS, element
from ..facts import opening_nbytes
from ..graph.node import Node
from ..peft.equality import unlike
from ..reduction import Bytes, Tile, place_in, stream
from .magnitude import Magnitude, Sums
from .result import SAME_VALUES, Comparison, Difference

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

T = TypeVar("T")
_STRETCH_NBYTES = 256 << 10  # of each side, compared at a time


def compare(
    ours: Mapping[str, Node],
    theirs: Mapping[str, Node],
    names: tuple[str, str] = ("first", "second"),
    num_workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
    values: bool = True,
    measure: bool = False,
    tolerance: float = 0.0,
    max_memory: int | str = "128MB",
) -> Comparison:
    """Compare two mappings: keys, shapes, dtypes, and every bit (NaN payloads included).

    Reads both sides once, in tiles of a few megabytes for each worker; with values=False, reads nothing.

    Args:
        ours, theirs: keys to nodes.
        names: what to call the two sides.
        num_workers, report, max_memory: as in reduction.stream.
        values: whether to compare elements.
        measure: whether to measure distances, also where the dtypes differ.
        tolerance: elements that lie no further apart count as equal, also where the dtypes differ; implies `measure`.
    """
    result = Comparison(values=values, names=names)
    measure = measure or tolerance > 0
    differences = [Difference(key, "missing", f"only in {names[1]}") for key in theirs if key not in ours]
    pairs: list[str] = []
    for key, node in ours.items():
        there = theirs[key] if key in theirs else None  # noqa: SIM401 - get() looks for near keys
        if (unfit := _unfit(key, node, there, names)) is not None:
            differences.append(unfit)
        if unfit is None or (measure and values and unfit.kind == "dtype" and _measurable(node, theirs[key])):
            pairs.append(key)
    result.differences = differences
    if not values:
        result.num_equal = len(pairs)
        return result
    found = _read(ours, theirs, pairs, measure, num_workers, max_memory, report)
    result.compared_nbytes = sum(ours[key].nbytes for key in pairs)
    cast: dict[str, bool] = {}  # of pairs that differ in dtype alone, whether the tolerance makes them equal
    for key in pairs:
        seen = found.pop(key, None) or _Seen(None)
        if seen.sums is not None:
            result.magnitudes[key] = seen.sums.result()
        if ours[key].code == theirs[key].code:
            _judge(result, key, ours[key], theirs[key], seen, tolerance)
        elif (measured := result.magnitudes.get(key)) is not None:
            if near := _is_near(measured, (ours[key], theirs[key]), tolerance):
                result.num_equal += 1
            if near or not measured.num_changed:
                cast[key] = near
    result.differences = [
        one._replace(detail=f"{one.detail}, {SAME_VALUES}") if one.key in cast and one.kind == "dtype" else one
        for one in result.differences
        if not cast.get(one.key)
    ]
    return result


def _unfit(key: str, here: Node, there: Node | None, names: tuple[str, str]) -> Difference | None:
    """Why two tensors cannot have the same bits; None where they can."""
    if there is None:
        return Difference(key, "extra", f"only in {names[0]}")
    if here.dims != there.dims:
        shapes = f"{list(here.dims)} in {names[0]}, {list(there.dims)} in {names[1]}"
        return Difference(key, "shape", shapes)
    if here.code != there.code:
        return Difference(key, "dtype", f"{here.code} in {names[0]}, {there.code} in {names[1]}")
    return None


def _measurable(*nodes: Node) -> bool:
    return all(node.code in NUMBERS for node in nodes)


_SEEN_NBYTES = 1700  # of memory that is known of one pair


class _Place(NamedTuple):
    """The first differing element of a tile."""

    position: tuple[int, ...]
    shown: str


class _Seen:
    """What the tiles of one pair have shown so far."""

    def __init__(self, sums: Sums | None) -> None:
        self.sums = sums
        self.places: list[_Place] = []
        self.num_different: list[int] = []


def _read(
    ours: Mapping[str, Node],
    theirs: Mapping[str, Node],
    keys: list[str],
    measure: bool,
    num_workers: int | None,
    max_memory: int | str,
    report: Callable[[int, int], None] | None,
) -> dict[str, _Seen]:
    """Read all pairs but those that are one and the same node."""
    wanted = [key for key in keys if ours[key] is not theirs[key]]
    seen = {key: _Seen(Sums() if measure and _measurable(ours[key], theirs[key]) else None) for key in wanted}

    def visit(tile: Tile) -> None:
        key = wanted[tile.number]
        sums = seen[key].sums
        if len(set(tile.codes)) > 1:
            assert sums is not None
            sums.add(_two(tile.codes), *_two(tile.held), None)
            return
        different = 0
        if not _same(*_two(tile.held)):
            x, y = (one.view(f"u{ours[key].itemsize}") for one in tile.held)
            unequal = x != y
            different = int(np.count_nonzero(unequal))
            seen[key].num_different.append(different)
            seen[key].places.append(_shown(tile, int(unequal.argmax()), x, y))
        if sums is not None:
            sums.add(_two(tile.codes), *_two(tile.held), different)

    groups = [(ours[key], theirs[key]) for key in wanted]
    stream(groups, visit, num_workers, max_memory, report, _SEEN_NBYTES, opening_nbytes(ours, theirs))
    return seen


def _two(sides: list[T]) -> tuple[T, T]:
    a, b = sides
    return a, b


def _same(x: Bytes, y: Bytes) -> bool:
    """Whether two stretches of memory hold the same bytes: by words, while both are in a core's cache."""
    whole = len(x) - len(x) % 8
    for at in range(0, whole, _STRETCH_NBYTES):
        stop = min(whole, at + _STRETCH_NBYTES)
        if not np.array_equal(x[at:stop].view("u8"), y[at:stop].view("u8")):
            return False
    return np.array_equal(x[whole:], y[whole:])


def _judge(result: Comparison, key: str, here: Node, there: Node, seen: _Seen, tolerance: float) -> None:
    """Count a pair as equal, or note how it differs."""
    measured = result.magnitudes.get(key)
    near = measured is not None and _is_near(measured, (here, there), tolerance)
    if near or not seen.places:
        result.num_equal += 1
        return
    first, count = min(seen.places), sum(seen.num_different)
    detail = f"{count} of {here.numel()} elements differ; {first.shown}"
    result.differences.append(Difference(key, "values", detail, first.position, count))


def _is_near(measured: Magnitude, sides: tuple[Node, Node], tolerance: float) -> bool:
    """Whether no element lies further from its partner than the tolerance, as far as float64 can tell."""
    if not 0 < tolerance < float("inf") or measured.max_delta > tolerance or measured.num_unlike:
        return False
    wide = any(node.code in ("I64", "U64") for node in sides)
    return not wide or max(measured.norm, measured.other_norm) < 2.0**53


def _shown(tile: Tile, flat: int, x: Bytes, y: Bytes) -> _Place:
    """An element of a tile, with both values; with their bits where the values look the same."""
    position = place_in(tile.box, flat)
    left, right = (element(tile.codes[0], held, flat) for held in tile.held)
    shown = f"the first at {list(position)}: {left!r} against {right!r}"
    if left == right or left != left:
        bits = tuple(int(one[flat]) for one in (x, y))
        shown += f" (bits {bits[0]:#x} against {bits[1]:#x})"
    return _Place(position, shown)


def compare_adapters(
    result: Comparison, ours: Checkpoint, theirs: Checkpoint, names: tuple[str, str] = ("first", "second")
) -> None:
    """Add to a comparison how the settings of two adapters differ: the same factors alone are not the same adapter.

    Both sides are in one layout. Checkpoints that are no adapters add nothing.
    """
    found, unknown = unlike(ours, theirs, names)
    result.differences += [Difference(*difference) for difference in found]
    result.unknown += unknown

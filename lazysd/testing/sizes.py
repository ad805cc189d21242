"""Sizes of axes that a strategy draws: tied where they have to be, of the shapes that break converters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from hypothesis import strategies as st

from ..layouts import Layout

MAX_SIZES = {"e": 13}  # axes that live in key names; every other axis has at most MAX_SIZE
MAX_SIZE = 9
# Attention: n groups of m heads of b rows each; q has n * m * b rows, k and v have n * b, a group of q has m * b.
HEADS = {"n": "", "m": "", "b": "", "a": "mb", "c": "b", "q": "na", "k": "nb", "v": "nb"}
Sizes = Mapping[str, int | tuple[int, int]]


class DrawnSizes:
    """Sizes of axes, drawn when they are first asked for."""

    def __init__(self, draw: Any, given: Sizes, tied: Sequence[tuple[str, str]]) -> None:
        self.draw, self.given, self.known = draw, given, dict[str, int]()
        self.tied = dict((a, b) if b in given else (b, a) for a, b in tied)  # the axis that was given leads
        self.shape = draw(st.sampled_from(("any", "any", "square", "twice")), label="I == H, or 2I == H?")

    def __getitem__(self, axis: str) -> int:
        if axis not in self.known:
            self.known[axis] = self[self.tied[axis]] if axis in self.tied else self._draw(axis)
        return self.known[axis]

    def _draw(self, axis: str) -> int:
        given = self.given.get(axis)
        if isinstance(given, int):
            return given
        if axis == "u":  # gate and up, side by side
            return 2 * self["i"]
        if axis in HEADS and given is None:  # rows of q, k and v, of all groups of heads or of one
            return prod(self[factor] for factor in HEADS[axis]) if HEADS[axis] else self.draw(st.integers(1, 3))
        low, high = given or (1, MAX_SIZES.get(axis, MAX_SIZE))
        if axis == "h" and given is None and self.shape != "any":
            return self["i"] * (2 if self.shape == "twice" else 1)
        sizes = st.integers(low, max(low, min(high, 6))) | st.integers(max(low, min(high, 10)), high)
        return int(self.draw(sizes if axis == "e" else st.integers(low, high), label=f"size of axis {axis}"))


def sums(table: Layout) -> Iterator[tuple[str, str, str]]:
    """(axis, axis of the first summand, name of the second) where config.json states a size as a sum."""
    by_name = {names[0]: axis for axis, names in table.sizes.items()}
    for text, axis in by_name.items():
        base, plus, more = text.partition(" + ")
        if plus and base in by_name:
            yield axis, by_name[base], more

"""Whether a layout may cut or turn what is quantised: blocks that would straddle tensors, codes packed along a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import LayoutError
from ..graph.boxes import Dims
from ..layouts.keys import KeyTemplate, parse_key
from ..layouts.pattern import Side, parse_axes
from ..layouts.rule import Layout, Rule


def rule_of(layout: Layout, key: str) -> Rule | None:
    """The rule of a layout that speaks of a plain weight's key; None where only renames do."""
    return next((rule for rule in layout.rules if not rule.rename and parse_key(rule.to).match(key)), None)


def is_turned(layout: Layout, key: str) -> bool:
    """Whether a layout stores the columns of a matrix before its rows."""
    rule = rule_of(layout, key)
    if rule is None:
        return False
    left, right = _sides(rule)
    if len(left.groups) < 2:
        return False
    row, column = (group[-1] for group in left.groups[-2:])
    where = {axis: place for place, group in enumerate(right.groups) for axis in group}
    return where[row] > where[column]


def witnesses(origin: Layout, target: Layout) -> tuple[KeyTemplate, ...]:
    """Keys of `origin` that decide whether a rule of either counts in a layer."""
    called = {rule.hf: rule.to for rule in origin.rules}
    wheres = dict.fromkeys(rule.where for rule in (*origin.rules, *target.rules) if rule.where)
    texts = dict.fromkeys(called.get(where, where) for where in wheres)
    return tuple(parse_key(text) for text in texts)


def part_axes(layout: Layout) -> frozenset[str]:
    """The axes of unequal parts that a layout's rules put end to end: q, k and v."""
    return frozenset(axis for rule in layout.rules for side in _sides(rule) for axis in (side.parts or "").split("+"))


def moving_axes(layout: Layout) -> frozenset[str]:
    """The axes of rows and columns, whose sizes are others where codes are packed or blocks share a scale."""
    sides = (side for rule in layout.rules if not rule.rename for side in _sides(rule))
    return frozenset(axis for side in sides for group in side.groups for axis in group[-1:]) - part_axes(layout)


def refuse_straddling(key: str, layout: Layout, dims: Dims, cell: tuple[int, int], sizes: Mapping[str, int]) -> None:
    """Raise LayoutError where parts that stand side by side in a tensor of the layout do not consist of whole blocks.

    Args:
        key: of the plain weight, in the layout.
        layout: whose rule puts the parts side by side.
        dims: shape of the plain weight, as the layout stores it.
        cell: rows and columns that share a scale, as the layout stores them.
        sizes: of named axes.
    """
    rule = rule_of(layout, key)
    if rule is None:
        return
    left, right = _sides(rule)
    moving = {group[-1] for group in left.groups[-2:]}
    words = parse_key(rule.hf).words
    for size, group, block in zip(dims[-2:], right.groups[-2:], cell, strict=True):
        inner = next((axis for axis in group if axis in moving), None)
        if inner is None or block == 1 or (len(group) == 1 and "+" not in inner):
            continue
        if group[-1] != inner:
            raise LayoutError(f"layout {layout.name!r} interleaves {' and '.join(group)}, and blocks of {block} do not")
        for part in _parts(group, inner, size, words, sizes):
            if part % block:
                raise LayoutError(
                    f"parts of {part} stand side by side in the {size} of layout {layout.name!r}, and blocks of "
                    f"{block} would straddle them"
                )


def _parts(
    group: tuple[str, ...], inner: str, size: int, words: Mapping[str, tuple[str, ...]], sizes: Mapping[str, int]
) -> Iterator[int]:
    """The sizes of what stands side by side along an axis of `size`; 1 where that is not known."""
    if "+" in inner:
        yield from (sizes.get(axis, 1) for axis in inner.split("+"))
        return
    count = 1
    for axis in group:
        count *= 1 if axis == inner else len(words[axis]) if axis in words else sizes.get(axis, 0)
    yield size // count if count else 1


def _sides(rule: Rule) -> tuple[Side, Side]:
    return parse_axes(rule.axes, rule.shared, rule.diagonal)

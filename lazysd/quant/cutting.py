"""Whether a layout may cut or turn what is quantised: blocks that would straddle tensors, codes packed along a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

from ..errors import LayoutError
from ..graph.boxes import Dims
from ..layouts.keys import parse_key
from ..layouts.pattern import Side, parse_axes
from ..layouts.rule import Layout, Rule


def rule_of(layout: Layout, key: str) -> Rule | None:
    """The rule of a layout that gives a plain weight's key; None where the key is what it is in the hub.

    As the engine chooses: renames give way to other rules, and to renames with more literal text.
    """
    found: list[Rule] = []
    for rule in layout.rules:
        if parse_key(rule.to).match(key) is not None:
            if not rule.rename:
                return rule
            found.append(rule)
    return max(found, key=lambda rule: parse_key(rule.to).weight, default=None)


def hub_of(rule: Rule) -> str:
    """What a rule calls its weights in the hub, the same for all layouts, with a prefix or without."""
    return rule.hf.replace("{prefix}", "model.")


def turned_of(layout: Layout, keys: Iterable[str]) -> dict[str, bool]:
    """For each kind of weight among keys of a layout, as the hub calls it: whether its rows are columns there."""
    rules = {rule for key in keys if (rule := rule_of(layout, key)) is not None}
    return {hub_of(rule): _turns(rule) for rule in rules}


def is_turned(layout: Layout, key: str) -> bool:
    """Whether a layout stores the columns of a matrix before its rows."""
    rule = rule_of(layout, key)
    return rule is not None and _turns(rule)


def _turns(rule: Rule) -> bool:
    left, right = _sides(rule)
    if len(left.groups) < 2:
        return False
    places = [_place(group, right) for group in left.groups[-2:]]
    return None not in places and places[0] > places[1]  # type: ignore[operator]


def _place(group: tuple[str, ...], side: Side) -> int | None:
    """Where the axes of a group stand on the other side."""
    return next((place for place, other in enumerate(side.groups) if _shared(group, other)), None)


def _shared(group: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two folds have a named axis in common."""
    return any(axis in other and not axis.isdecimal() for axis in group)


def parts_of(key: str, layout: Layout, other: Layout) -> tuple[int, bool]:
    """How many weights stand side by side in the rows of one, and whether as two halves: gate over up.

    Args:
        key: of a plain weight, in `layout`.
        other: the other layout of a conversion, whose rules tell where `key` is what the hub has.
    """
    rule, end = rule_of(layout, key), 1
    if rule is None:
        rule, end = next((rule for rule in other.rules if parse_key(rule.hf).match(key) is not None), None), 0
    if rule is None:
        return 1, False
    words = {**parse_key(rule.hf).words, **parse_key(rule.to).words}
    side = _sides(rule)[end]
    group = side.groups[-1 if end and _turns(rule) else -2] if len(side.groups) > 1 else ()
    apart = {len(words.get(axis, ())) for axis in side.keys}  # of q, k and v a key names one
    counts = [len(words.get(axis, ())) or axis.count("+") + 1 for axis in group]
    counts = [1 if "+" in axis and count in apart else count for axis, count in zip(group, counts, strict=True)]
    return prod(counts), bool(counts) and counts[0] == prod(counts) == 2 and "+" not in group[0] and len(group) > 1


def expert_of(rule: Rule, fields: Mapping[str, str]) -> tuple[int, int | None] | None:
    """Where in a stack that a rule makes a weight of the hub stands: its expert, and the half of rows; None: elsewhere.

    `fields` are those of the weight's key.
    """
    side = _sides(rule)[1]
    lead = side.groups[0][0] if len(side.groups) == 3 and len(side.groups[0]) == 1 else ""
    if not fields.get(lead, "").isdecimal() or rule.shared or parse_key(rule.hf).shifts:
        return None
    words = {**parse_key(rule.hf).words, **parse_key(rule.to).words}.get(side.groups[1][0], ())
    halves = not _turns(rule) and len(words) == 2 == len(side.groups[1])
    return int(fields[lead]), words.index(fields[side.groups[1][0]]) if halves else None


def part_axes(layout: Layout) -> frozenset[str]:
    """The axes of unequal parts that a layout's rules put end to end: q, k and v."""
    return frozenset(axis for rule in layout.rules for side in _sides(rule) for axis in (side.parts or "").split("+"))


def has_parts(layout: Layout, key: str, hub: bool) -> bool:
    """Whether the rule for a key, of the layout or of the hub, puts unequal parts end to end."""
    ends = ((rule.hf if hub else rule.to, rule) for rule in layout.rules if "|" in rule.axes or "+" in rule.axes)
    return any(parse_key(text).match(key) is not None for text, _ in ends)


def moving_axes(layout: Layout) -> frozenset[str]:
    """The axes of rows and columns, whose sizes are others where codes are packed or blocks share a scale."""
    sides = (side for rule in layout.rules for side in _sides(rule))
    return frozenset(axis for side in sides for group in side.groups for axis in group[-1:]) - part_axes(layout)


def refuse_straddling(key: str, layout: Layout, dims: Dims, cell: tuple[int, int], sizes: Mapping[str, int]) -> None:
    """Raise LayoutError where a layout's rule moves less than whole blocks.

    Args:
        key: of the plain weight, in the layout.
        layout: whose rule puts parts side by side, or takes them apart.
        dims: shape of the plain weight, as the layout stores it.
        cell: rows and columns that share a scale, as the layout stores them.
        sizes: of named axes.
    """
    rule = rule_of(layout, key)
    if rule is None:
        return
    left, right = _sides(rule)
    words = {**parse_key(rule.hf).words, **parse_key(rule.to).words}
    for size, group, block in zip(dims[-2:], right.groups[-2:], cell, strict=True):
        there = next((other for other in left.groups if _shared(other, group)), group)
        if block == 1 or (there == group and "+" not in "".join(group)):
            continue
        run = _run(there, group)
        if not run:
            folds = max(there, group, key=len)
            raise LayoutError(f"layout {layout.name!r} interleaves {' and '.join(folds)}, and blocks of {block} do not")
        for part in _parts(group, run, size, words, sizes):
            if part % block:
                raise LayoutError(
                    f"parts of {part} stand side by side in the {size} of layout {layout.name!r}, and blocks of "
                    f"{block} would straddle them"
                )


def _run(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """The innermost axes that two folds share: what stays together, whatever moves."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return other[len(other) - count :]


def _parts(
    group: tuple[str, ...],
    run: tuple[str, ...],
    size: int,
    words: Mapping[str, tuple[str, ...]],
    sizes: Mapping[str, int],
) -> Iterator[int]:
    """The sizes of what stays together along an axis of `size`; 1 where that is not known."""
    if "+" in run[-1]:
        yield from (sizes.get(axis, 1) for axis in run[-1].split("+"))
        return
    count = 1
    for axis in group[: len(group) - len(run)]:
        count *= len(words[axis]) if axis in words else int(axis) if axis.isdecimal() else sizes.get(axis, 0)
    yield size // count if count else 1


def _sides(rule: Rule) -> tuple[Side, Side]:
    return parse_axes(rule.axes, rule.shared, rule.diagonal)

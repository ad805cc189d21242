"""Matrices that a conversion moves, turns, stacks or unstacks as wholes: no row leaves another, whatever blocks are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..layouts.grouping import Table
from ..layouts.keys import KeyTemplate
from ..layouts.pattern import Side, parse_axes
from ..layouts.rule import End, Layout, Rule

_WHOLE = (("rows",), ("columns",))


def moves(keys: Iterable[str], origin: Layout, target: Layout) -> Table | None:
    """Rules straight from one layout to another in which rows and columns are one axis each, whatever is folded there.

    None where a weight among `keys`, of `origin`, has none: its rows, or those of what it becomes, are other ones.
    """
    ends = []
    for rule, goal in _meeting(origin.rules, target.rules):
        if rule.shared or rule.diagonal or goal.shared or goal.diagonal:
            continue
        here, there = rule.ends(False), goal.ends(True)
        if (sides := _as_wholes(here.side, there.target_side)) is not None:
            ends.append(End(here.template, sides[0], there.target, sides[1], rule))
    if not all(_covers((end.template for end in ends), key) for key in keys):
        return None
    return Table(f"{origin.name} to {target.name}", tuple(ends), {}, (), {})


def _meeting(rules: Iterable[Rule], goals: Iterable[Rule]) -> Iterator[tuple[Rule, Rule]]:
    """Rules with the same end in the hub; where only one of two says so, both with the prefix that it names."""
    exact = {_hub(goal): goal for goal in goals}
    bound = {_hub(made): made for made in map(_bound, exact.values())}
    for rule in rules:
        if (goal := exact.get(_hub(rule))) is not None:
            yield rule, goal
        elif (goal := bound.get(_hub(_bound(rule)))) is not None:
            yield _bound(rule), goal


def _bound(rule: Rule) -> Rule:
    hf, to = (text.replace("{prefix}", "model.") for text in (rule.hf, rule.to))
    return replace(rule, hf=hf, to=to)


def _hub(rule: Rule) -> tuple[str, str]:
    return rule.hf, str(parse_axes(rule.axes, rule.shared, rule.diagonal)[0])


def _covers(templates: Iterable[KeyTemplate], key: str) -> bool:
    return any(template.match(key) is not None for template in templates)


def _as_wholes(here: Side, there: Side) -> tuple[Side, Side] | None:
    """Both sides with one axis for rows and one for columns; None where they fold others."""
    matrix = here.groups[-2:]
    if len(matrix) < 2 or here.orders or there.orders or any("+" in axis for group in matrix for axis in group):
        return None
    if there.groups[-2:] not in (matrix, matrix[::-1]):
        return None
    names = _WHOLE if there.groups[-2:] == matrix else _WHOLE[::-1]
    return replace(here, groups=here.groups[:-2] + _WHOLE), replace(there, groups=there.groups[:-2] + names)

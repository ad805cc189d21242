"""Two layouts of a family, joined where their rules meet in the same keys of the hub: no detour over single experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..tensor.lazy import LazyTensor
from .grouping import Table, neighbourhoods
from .keys import Neighbourhood, parse_key
from .pattern import parse_axes
from .rule import End, Layout, Rule


class Straight(NamedTuple):
    """Rules from one layout to another, and what stands for keys of their kind."""

    table: Table
    near: list[Neighbourhood]
    back: tuple[Rule, ...] = ()  # of the origin, for keys that the joined rules say nothing of: to the hub,
    on: tuple[Rule, ...] = ()  # and of the target: from there


def compose(origin: Layout, target: Layout, tensors: Mapping[str, LazyTensor]) -> Straight | None:
    """The rules from `origin` to `target`; None where some key needs the way over the hub.

    A rule of the one meets a rule of the other where both have the same end in the hub: same keys, same axes.
    """
    if origin.is_hub or target.is_hub or origin is target or _takes_apart(origin) or _takes_apart(target):
        return None
    goals = {hub_end(rule): rule for rule in target.rules}
    ends: list[End] = []
    met: set[tuple[str, str]] = set()
    counts: dict[str, int] = {}
    for rule in origin.rules:
        goal = goals.get(hub_end(rule))
        plain = not (rule.shared or rule.diagonal or rule.rename)
        if goal is not None and plain and not (goal.shared or goal.diagonal or goal.rename):
            here, there = rule.ends(False), goal.ends(True)
            ends.append(End(here.template, here.side, there.target, there.target_side, rule))
            met.add(hub_end(rule))
            counts |= {
                axis: len(here.target.words[axis]) for axis in here.target_side.keys if axis in here.target.words
            }
        elif not rule.rename and any(rule.ends(False).template.match(key) is not None for key in tensors):
            return None
    on = tuple(rule for rule in target.rules if hub_end(rule) not in met)
    if any(rule.ends(True).template.match(key) is not None for rule in on if not rule.rename for key in tensors):
        return None
    back = tuple(rule for rule in origin.rules if hub_end(rule) not in met)
    near = neighbourhoods([rule.ends(False) for rule in origin.rules] + [rule.ends(True) for rule in target.rules])
    refuses = {**origin.refuses, **target.refuses}
    beside = (*origin.beside, *target.beside)
    return Straight(
        Table(f"{origin.name} to {target.name}", tuple(ends), refuses, beside, counts=counts), near, back, on
    )


def _takes_apart(layout: Layout) -> bool:
    """Whether keys that are of one rule elsewhere are of two in a layout, by the numbers in them."""
    return any(rule.afters or parse_key(rule.hf).shifts for rule in layout.rules if not rule.rename)


def hub_end(rule: Rule) -> tuple[str, str]:
    """The end of a rule in the hub."""
    return rule.hf, str(parse_axes(rule.axes, rule.shared, rule.diagonal)[0])

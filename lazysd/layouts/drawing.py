"""Layouts as people read them: which pairs there are, and a table's rows as key, shape, pattern, key, shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from . import registry
from .keys import KeyTemplate
from .pattern import REST, Side
from .rule import Layout, Rule

LETTERS = {"e": "E", "h": "H", "i": "I", "r": "r"}


class Row(NamedTuple):
    """One line of a table from one layout to another."""

    key: str
    shape: str
    pattern: str
    to_key: str
    to_shape: str


def rows(origin: Layout, target: Layout) -> Iterator[Row]:
    """What becomes of the keys of `origin` in `target`; keys that no rule speaks of stay as they are."""
    goals = {_hub(rule): rule for rule in target.rules}
    met = set()
    for rule in origin.rules:
        here = rule.ends(False)
        goal = goals.get(_hub(rule))
        if goal is None:
            yield _row(here.template, here.side, here.target, here.target_side, here.target)
            continue
        met.add(_hub(rule))
        there = goal.ends(True)
        yield _row(here.template, here.side, there.target, there.target_side, here.target)
    for rule in target.rules:
        if _hub(rule) not in met:
            end = rule.ends(True)
            yield _row(end.template, end.side, end.target, end.target_side, end.template)


def _hub(rule: Rule) -> tuple[str, str]:
    end = rule.ends(True)
    return rule.hf, str(end.side)


def _row(key: KeyTemplate, side: Side, to_key: KeyTemplate, to_side: Side, hub: KeyTemplate) -> Row:
    words = {axis: len(found) for template in (key, to_key, hub) for axis, found in template.words.items()}
    return Row(key.text, shape(side, words), f"{side} -> {to_side}", to_key.text, shape(to_side, words))


def shape(side: Side, words: dict[str, int]) -> str:
    """A shape in letters: E experts, I intermediate, H hidden; an axis of words is their number."""

    def name(axis: str) -> str:
        letter = LETTERS.get(axis[0], axis) + axis[1:] if axis[1:].isdecimal() else LETTERS.get(axis, axis)
        return f"({axis})" if "+" in axis else str(words.get(axis, letter))

    sizes = ["…" if group == (REST,) else "".join(sorted(map(name, group))) for group in side.groups]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def overview() -> dict[str, Any]:
    """Families with the layouts they have, and dialects with what they are."""
    return {
        "families": {
            family: {
                "model_types": list(registry.families()[family].model_types) if family in registry.families() else [],
                "layouts": [layout.name for layout in registry.layouts_of(family)],
            }
            for family in registry.family_names()
        },
        "dialects": {name: dialect.description for name, dialect in registry.dialects().items()},
    }


def of_family(family: str) -> dict[str, Any]:
    """Every layout that a family has, and why it lacks others."""
    found: dict[str, Any] = {"family": family, "layouts": {}, "not": {}}
    for name in registry.candidates(family):
        layout = registry.get_in(name, family)
        if isinstance(layout, Layout):
            found["layouts"][name] = {"description": layout.description, "source": layout.source}
        elif layout is not None:
            found["not"][name] = str(layout)
    return found

"""Whether several families that fit the keys would make the same of them, whichever of them it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from ..errors import LayoutError
from . import registry
from .composing import hub_end
from .detect import STATE, Found
from .evidence import Evidence
from .grouping import Table, key_of
from .rule import End, Layout

Made = tuple[str, ...]  # what becomes of a kind of keys: the key or its template, and axes
MAX_SHOWN = 6  # families of one result in a message
_AXIS = re.compile(r"[A-Za-z_]\w*")


def agreed(
    found: Found, target: str, tensors: Mapping[str, Any], config: Mapping[str, Any] | None
) -> tuple[Layout, Layout]:
    """(origin, target) of a conversion, where all families that fit the keys agree on its result.

    A family that needs a number that config.json does not state makes nothing, and so says nothing.
    Raises LayoutError naming the families where they do not, or where none of them has the target.
    """
    kinds = Evidence(tensors).kinds.values()
    ways: dict[frozenset[Made], list[tuple[Layout, Layout]]] = {}
    refusals: list[LayoutError] = []
    for origin in found.layouts:
        if set(origin.firsts) - set(origin.config_firsts(config)) and len(found.layouts) > 1:
            continue
        try:
            goal = registry.get(target, origin.family)
        except LayoutError as error:
            refusals.append(error)
            continue
        made = frozenset(_made(origin, goal, kinds, tensors))
        ways.setdefault(made, []).append((origin, goal))
    if not ways:
        raise _none(found, target, refusals)
    if len(ways) > 1:
        groups = "; or ".join(_listed([str(origin.family) for origin, _ in pairs]) for pairs in ways.values())
        raise LayoutError(
            f"without a config.json that states model_type, the keys fit several families, whose {target!r} differ: "
            f"{groups}; {STATE}"
        )
    (pairs,) = ways.values()
    return next((pair for pair in pairs if pair[0].family == registry.FIRST), pairs[0])


def _none(found: Found, target: str, refusals: list[LayoutError]) -> LayoutError:
    if len(refusals) == 1:
        return refusals[0]
    names = _listed([str(one.family) for one in found.layouts])
    return LayoutError(f"no family that fits the keys has a layout {target!r}: {names}; {STATE}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more


def _made(origin: Layout, goal: Layout, kinds: Any, tensors: Mapping[str, Any]) -> Iterator[Made]:
    """What becomes of each kind of keys, and why not, on the way to the hub and from there."""
    back = _table(origin, False).among(tensors)
    on = _table(goal, True).among(tensors)
    met = {hub_end(end.rule): end for end in on.ends}
    for key in kinds:
        yield from ((key, why) for table in (back, on) for why in table.refused(key))
        claim = back.claims(key, {})
        if claim is None:
            yield (key, *_onward(on, key))
            continue
        end, fields = back.ends[claim[0]], claim[1]
        fixed = {name: value for name, value in fields.items() if name not in end.side.keys}
        goal_end = met.get(hub_end(end.rule))
        if goal_end is not None:
            yield (key, *_spelt(goal_end, fixed, f"{end.rule.axes} ; {goal_end.rule.axes}"))
        elif end.side.keys or end.target_side.keys:
            yield (key, *_spelt(end, fixed, end.rule.axes))
        else:
            yield (key, end.rule.axes, *_onward(on, key_of(end.target, (), (), fixed, {})))


def _table(layout: Layout, forward: bool) -> Table:
    return Table(layout.name, tuple(rule.ends(forward) for rule in layout.rules), layout.refuses, layout.beside)


def _onward(table: Table, key: str) -> Made:
    """What becomes of one key of the hub."""
    claim = table.claims(key, {})
    if claim is None:
        return (key,)
    end = table.ends[claim[0]]
    return _spelt(end, {name: value for name, value in claim[1].items() if name not in end.side.keys}, end.rule.axes)


def _spelt(end: End, fixed: dict[str, str], axes: str) -> Made:
    """The key that is written, fields that count left out, and the axes, by whatever letters."""
    words = (str(end.target.words.get(axis, "number")) for axis in end.target_side.keys)
    names, letters = count(), dict[str, str]()
    for axis in _AXIS.findall(axes):
        letters.setdefault(axis, f"a{next(names)}")
    return (key_of(end.target, (), (), fixed, {}), *words, _AXIS.sub(lambda axis: letters[axis[0]], axes))

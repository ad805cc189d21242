"""Quantised weights of which some change: what nothing has touched keeps its codes, the others are encoded again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from ..errors import LayoutError
from ..graph.boxes import full_box
from ..graph.rewrite import concat, slice_
from ..layouts.keys import parse_key
from ..layouts.rule import Layout
from .base import Weight, label
from .cutting import expert_of
from .travel import Load

Place = tuple[int, int | None]  # which expert of a stack, and which half of its rows; None: all of them
Touched = dict[str, set[Place] | None]  # None: not of a stack, or all of it


def touched(changed: Iterable[str], layout: Layout | None) -> Touched:
    """The keys, in a layout, of what has changed in the hub, and where it stands in them."""
    found: Touched = {}
    rules = [(rule, parse_key(rule.hf), parse_key(rule.to)) for rule in layout.rules] if layout is not None else []
    for key in changed:
        there, place = key, None
        for rule, here, template in rules:
            if (fields := here.match(key)) is not None:
                there = template.format(fields)
                place = None if layout is None or layout.firsts else expert_of(rule, fields)
                break
        places = found.setdefault(there, set())
        found[there] = places | {place} if places is not None and place is not None else None
    return found


def put_back(load: Load, made: Mapping[str, Any], changed: Touched, requantize: bool) -> tuple[dict[str, Any], int]:
    """Plain weights that nothing has changed as the codes and scales that they were; and how many were encoded again.

    Args:
        load: the base, and its weights as plain ones.
        made: `load.plain` with changes, in the same layout.
        changed: keys of it, and where in them.
        requantize: encode quantised weights that changed, by their own scheme; else they are refused.

    Raises:
        LayoutError: a quantised weight has changed that is not to be, or cannot be, encoded again.
    """
    result: dict[str, Any] = {}
    count = 0
    for key, node in made.items():
        weight = load.weights.get(key)
        if weight is None:
            result[key] = node
        elif key not in changed:
            result |= {part: load.tensors[part] for part in weight.parts.values()}
        elif requantize:
            parts, num = _encoded(load, weight, node, changed[key])
            result |= {weight.parts[role]: part for role, part in parts.items()}
            count += num
        else:
            raise LayoutError(
                f"{key}: the base is quantised ({weight.scheme.name}), and an update cannot be added to codes; decode "
                'what is quantised (dtype="bf16", --dtype bf16), or encode what changes again, with a loss '
                "(requantize=True, --requantize)"
            )
    return result, count


def _encoded(load: Load, weight: Weight, node: Any, places: set[Place] | None) -> tuple[dict[str, Any], int]:
    """The parts of a changed weight, in the shapes and dtypes that they had, and how many weights were encoded."""
    before = weight.nodes(load.tensors)
    cell = weight.scheme.cell(before, load.settings) or (1, 1)
    try:
        if places is None or node.ndim < 3 or not _is_stack(before, node.dims[0]):
            return _of_one(load, weight, node, before), 1
        if not _has_halves(before, node.dims[1], cell[0]):
            places = {(expert, None) for expert, _ in places}
        return _of_stack(load, weight, node, before, places), len(places)
    except (ValueError, LayoutError) as error:
        raise LayoutError(f"{weight.key} ({weight.scheme.name}): {error}; decode instead: --dtype bf16") from error


def _is_stack(parts: Mapping[str, Any], num: int) -> bool:
    """Whether every part of a fused group has its own rows for each expert."""
    return all(part.ndim and part.dims[0] == num for part in parts.values())


def _has_halves(parts: Mapping[str, Any], rows: int, block: int) -> bool:
    """Whether every part of a fused group has its own rows for gate and for up."""
    return not rows // 2 % block and all(part.ndim > 1 and not part.dims[1] % 2 for part in parts.values())


def _of_stack(load: Load, weight: Weight, node: Any, before: Mapping[str, Any], places: set[Place]) -> dict[str, Any]:
    """The parts of a fused group, of which some experts, or their gate or up, are encoded again."""
    made: dict[str, list[Any]] = {role: [] for role in before}
    experts = {expert for expert, _ in places}
    for expert, run in groupby(range(node.dims[0]), key=lambda at: at if at in experts else None):
        axis = list(run)
        here = {role: _cut(part, 0, axis[0], axis[-1] + 1) for role, part in before.items()}
        if expert is not None:
            halves = {half for at, half in places if at == expert}
            here = _of_expert(load, weight, _cut(node, 0, expert, expert + 1), here, halves)
        for role, part in here.items():
            made[role].append(part)
    return {role: concat(tuple(parts), 0) for role, parts in made.items()}


def _of_expert(
    load: Load, weight: Weight, node: Any, before: Mapping[str, Any], halves: set[int | None]
) -> dict[str, Any]:
    if None in halves or len(halves) == 2:
        return _of_one(load, weight, node, before)
    made: dict[str, list[Any]] = {role: [] for role in before}
    for half in range(2):
        cut = {role: _half(part, half) for role, part in before.items()}
        here = _of_one(load, weight, _half(node, half), cut) if half in halves else cut
        for role, part in here.items():
            made[role].append(part)
    return {role: concat(tuple(parts), 1) for role, parts in made.items()}


def _half(node: Any, half: int) -> Any:
    return _cut(node, 1, half * node.dims[1] // 2, (half + 1) * node.dims[1] // 2)


def _cut(node: Any, axis: int, start: int, stop: int) -> Any:
    box = full_box(node.dims)
    return slice_(node, (*box[:axis], range(start, stop), *box[axis + 1 :]))


def _of_one(load: Load, weight: Weight, node: Any, before: Mapping[str, Any]) -> dict[str, Any]:
    made = {**before, **weight.scheme.encode_again(node, before, load.settings)}
    for role, part in made.items():
        if (part.dims, part.code) != (before[role].dims, before[role].code):
            raise LayoutError(f"encoded again, its {role} would be {label(part)}, the base has {label(before[role])}")
    return made

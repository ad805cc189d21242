"""How a layout's rules are applied, in either direction: keys are grouped, nodes are built, nothing is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..arguments import checked
from ..errors import LayoutError
from ..graph.compute import Agree
from ..graph.leaves import Full
from ..graph.ops import Stack
from ..graph.rewrite import build
from ..tensor.lazy import LazyTensor
from .composing import Straight
from .grouping import (
    Group,
    Table,
    check_group,
    count_axes,
    group_keys,
    indices,
    neighbourhoods,
    shown,
    writer,
)
from .keys import Neighbourhood
from .pattern import Side
from .rearrange import rearrange
from .rule import End, Layout, Rule

Made = list[tuple[str, LazyTensor]]


def table_of(
    layout: Layout, forward: bool, rules: tuple[Rule, ...] | None = None, firsts: Mapping[str, int] | None = None
) -> Table:
    """A layout's rules in one direction, from the hub (forward) or to it."""
    ends = tuple(rule.ends(forward) for rule in (layout.rules if rules is None else rules) if not rule.afters)
    return Table(layout.name, ends, layout.refuses, layout.beside, firsts or {})


@checked
def apply(
    tensors: Mapping[str, LazyTensor],
    layout: Layout,
    forward: bool,
    sizes: Mapping[str, int],
    rules: tuple[Rule, ...] | None = None,
    firsts: Mapping[str, int] | None = None,
) -> dict[str, LazyTensor]:
    """Rewrite keys through a layout's rules, from the hub (forward) or to it. Builds nodes; reads nothing.

    Targets appear where the first of their sources stood. Raises LayoutError: an incomplete group, a key that belongs
    to a rule's neighbourhood but to no rule, two rules or two sources claiming one key, shapes that do not fit.
    """
    table = table_of(layout, forward, rules, firsts)
    near = neighbourhoods(table.ends)
    if not forward:  # what comes out is the hub, so that nothing may pass that its own rules would have to cover
        near += neighbourhoods(table_of(layout, True, rules).ends)
    return apply_table(tensors, table, sizes, near)


def apply_table(
    tensors: Mapping[str, LazyTensor], table: Table, sizes: Mapping[str, int], near: Iterable[Neighbourhood]
) -> dict[str, LazyTensor]:
    """Rewrite keys through rules in one direction; as apply()."""
    grouped = group_keys(tensors, table, near, sizes)
    sizes = {**sizes, **count_axes(table, grouped, sizes)}
    result: dict[str, LazyTensor] = {}
    sources: dict[str, str] = {}
    loose: list[tuple[str, int | None]] = []  # results that no neighbourhood guards, and the rule they came by
    for item in grouped.order:
        number = None
        if isinstance(item, str):
            made, origin = [(item, tensors[item])], item
        else:
            number, fixed = item
            group = grouped.groups[item]
            origin = next(iter(group.values()))[0]
            made = _convert_group(group, table.ends[number], dict(fixed), sizes, table.firsts)
        if number is None or table.ends[number].rule.rename:
            loose += [(key, number) for key, _ in made]
        for key, node in made:
            if key in result:
                raise LayoutError(
                    f"{shown(sources[key])} and {shown(origin)} both become {shown(key)}; leave one of them out"
                )
            result[key], sources[key] = node, origin
    _check_way_back(loose, sources, table, sizes)
    return result


def apply_composed(
    tensors: Mapping[str, LazyTensor], straight: Straight, sizes: Mapping[str, int], firsts: Mapping[str, int]
) -> dict[str, LazyTensor]:
    """Rewrite keys through the joined rules of two layouts; as apply()."""
    table = replace(straight.table, firsts=firsts)
    if not straight.back and not straight.on:
        return apply_table(tensors, table, sizes, straight.near)
    mine = {key: node for key, node in tensors.items() if table.claims(key, sizes) is not None}
    made = apply_table(mine, table, sizes, ())
    rest: Mapping[str, LazyTensor] = {key: node for key, node in tensors.items() if key not in mine}
    for rules, forward in ((straight.back, False), (straight.on, True)):
        ends = tuple(rule.ends(forward) for rule in rules)
        rest = apply_table(rest, replace(table, ends=ends), sizes, straight.near)
    if twice := next((key for key in rest if key in made), None):
        raise LayoutError(f"{shown(twice)} would be made of experts and of another tensor; leave one of them out")
    return {**made, **rest}


def _check_way_back(
    loose: Iterable[tuple[str, int | None]], sources: Mapping[str, str], table: Table, sizes: Mapping[str, int]
) -> None:
    """Raise LayoutError where a result would not be read back by the rule that made it, or a bystander by any."""
    back = replace(table, ends=tuple(End(e.target, e.target_side, e.template, e.side, e.rule) for e in table.ends))
    back = back.among([key for key, _ in loose])
    for key, number in loose:
        claim = back.claims(key, sizes)
        if (None if claim is None else claim[0]) == number:
            continue
        if number is None:
            raise LayoutError(
                f"{shown(key)} is a key that only the other side of layout {table.name!r} has; keys of several layouts "
                "stand side by side: say which one it is (source=, --from), or leave one of them out"
            )
        raise LayoutError(
            f"{shown(sources[key])} becomes {shown(key)}, which layout {table.name!r} would read back as something "
            "else; its table names two things alike"
        )


def check_passing(
    tensors: Mapping[str, LazyTensor], layout: Layout, sizes: Mapping[str, int], firsts: Mapping[str, int]
) -> None:
    """What apply() checks, for a layout that leaves the hub as it is: completeness, neighbours, shapes."""
    table = table_of(layout, True, firsts=firsts)
    grouped = group_keys(tensors, table, neighbourhoods(table.ends), sizes)
    sizes = {**sizes, **count_axes(table, grouped, sizes)}
    for (number, fixed), group in grouped.groups.items():
        check_group(group, table.ends[number], dict(fixed), sizes, firsts)
        _check_shape(group, table.ends[number].side, sizes)


def _check_shape(group: Group, side: Side, sizes: Mapping[str, int]) -> None:
    from .rearrange import solve

    key, node = next(iter(group.values()))
    try:
        if side.parts is None:
            solve(side, node.dims, sizes)
    except ValueError as error:
        raise LayoutError(f"{shown(key)}: {error}") from error


def _convert_group(
    group: Group, end: End, fixed: dict[str, str], sizes: Mapping[str, int], firsts: Mapping[str, int]
) -> Made:
    """One group of source keys to its target keys."""
    _, side, target, target_side, rule = end
    check_group(group, end, fixed, sizes, firsts)
    lead = [sizes[axis] for axis in side.keys]
    nodes = tuple(group[index][1] for index in indices(lead))
    keys = [group[index][0] for index in indices(lead)]
    here, there = side, target_side
    if rule.shared in side.keys:
        nodes, here = _agreed(nodes, keys, side, rule.shared, sizes)
    elif rule.shared:
        there = target_side.without(rule.shared)
    elif rule.diagonal:
        nodes, here = _on_diagonal(nodes, side, rule.diagonal, sizes)
    try:
        made, known = rearrange(nodes, here, there, sizes)
    except ValueError as error:
        raise LayoutError(f"{shown(keys[0])}: {error}") from error
    if not target_side.keys:
        return [(target.format(fixed), made[0])]
    result = []
    write = writer(target, target_side.keys, fixed, firsts)
    for index, node in zip(indices(known[axis] for axis in there.keys), made, strict=True):
        if there is target_side:
            result.append((write(index), node))
            continue
        at = dict(zip(there.keys, index, strict=True))
        for copy in range(sizes[rule.shared]) if rule.shared in target_side.keys else (0,):
            full = tuple(at.get(axis, copy) for axis in target_side.keys)
            result.append((write(full), node))
    return result


Nodes = tuple[LazyTensor, ...]


def _agreed(
    nodes: Nodes, keys: list[str], side: Side, shared: str | None, sizes: Mapping[str, int]
) -> tuple[Nodes, Side]:
    """One node for all copies along a shared key axis; that they are copies is checked as they are read."""
    assert shared is not None
    rest = side.without(shared)
    copies: dict[tuple[int, ...], list[int]] = {}
    for flat, index in enumerate(indices(sizes[axis] for axis in side.keys)):
        place = tuple(at for axis, at in zip(side.keys, index, strict=True) if axis != shared)
        copies.setdefault(place, []).append(flat)
    agreed = (build(Agree(tuple(keys[k] for k in same)), [nodes[k] for k in same]) for same in copies.values())
    return tuple(agreed), rest


def _on_diagonal(nodes: Nodes, side: Side, axis: str, sizes: Mapping[str, int]) -> tuple[Nodes, Side]:
    """Each node among zeros, along a new first axis: its own index of the diagonal axis is where it stands."""
    number = side.keys.index(axis)
    zero = nodes[0].like(Full(0.0), (), nodes[0].dims, nodes[0].code)
    stacked = []
    for index, node in zip(indices(sizes[name] for name in side.keys), nodes, strict=True):
        row = [node if k == index[number] else zero for k in range(sizes[axis])]
        stacked.append(build(Stack((len(row),)), row))
    return tuple(stacked), Side(side.keys, ((axis + "'",), *side.groups))


__all__ = ["apply", "apply_composed", "check_passing", "table_of"]

"""How a layout's rules are applied, in either direction: keys are grouped, nodes are built, nothing is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import product
from math import prod
from typing import NoReturn

from ..errors import LayoutError, MissingExpertsError
from ..graph.compute import Agree
from ..graph.leaves import Full
from ..graph.ops import Stack
from ..graph.rewrite import build
from ..tensor.lazy import LazyTensor
from .pattern import KeyTemplate, Side, rearrange
from .rule import End, Layout, Rule

Group = dict[tuple[int, ...], tuple[str, LazyTensor]]  # index along the key axes -> key, node
GroupId = tuple[int, tuple[tuple[str, str], ...]]  # number of the rule, the fields that all keys of a group share


def apply(
    tensors: Mapping[str, LazyTensor],
    layout: Layout,
    forward: bool,
    sizes: Mapping[str, int],
    rules: tuple[Rule, ...] | None = None,
) -> dict[str, LazyTensor]:
    """Rewrite keys through a layout's rules, from the hub (forward) or to it. Builds nodes; reads nothing.

    Targets appear where the first of their sources stood. Raises LayoutError: an incomplete group, a key that belongs
    to a rule's neighbourhood but to no rule, two rules or two sources claiming one key, shapes that do not fit.
    """
    ends = [rule.ends(forward) for rule in (layout.rules if rules is None else rules)]
    near = _neighbourhoods(ends)
    groups: dict[GroupId, Group] = {}
    order: list[str | GroupId] = []  # a key that passes through, or a group that is rewritten
    strangers: list[str] = []
    for key, node in tensors.items():
        claims = [(number, fields) for number, end in enumerate(ends) if (fields := end[0].match(key)) is not None]
        if len(claims) > 1:
            both = " and ".join(repr(ends[number][0].text) for number, _ in claims)
            raise LayoutError(f"{key}: claimed by two rules of layout {layout.name!r}: {both}")
        if not claims:
            if any(text in key and regex.fullmatch(key) for text, regex in near):
                strangers.append(key)
            order.append(key)
            continue
        number, fields = claims[0]
        template, side = ends[number][:2]
        index = tuple(template.number(axis, fields[axis]) for axis in side.keys)
        ident = (number, tuple((name, word) for name, word in fields.items() if name not in side.keys))
        if ident not in groups:
            groups[ident] = {}
            order.append(ident)
        groups[ident][index] = (key, node)
    if strangers:
        _refuse(strangers, layout)
    counts = _count_axes(ends, groups, sizes)
    result: dict[str, LazyTensor] = {}
    sources: dict[str, str] = {}
    for item in order:
        if isinstance(item, str):
            made, origin = [(item, tensors[item])], item
        else:
            number, fixed = item
            group = groups[item]
            origin = next(iter(group.values()))[0]
            made = _convert_group(group, ends[number], dict(fixed), {**sizes, **counts})
        for key, node in made:
            if key in result:
                raise LayoutError(f"{sources[key]} and {origin} both become {key}; leave one of them out")
            result[key], sources[key] = node, origin
    return result


def check_passing(keys: Iterable[str], layout: Layout) -> None:
    """Refuse keys of the hub that `layout`, though it leaves the hub as it is, has no rule for."""
    ends = [rule.ends(True) for rule in layout.rules]
    near = _neighbourhoods(ends)
    strangers = [
        key
        for key in keys
        if any(text in key and regex.fullmatch(key) for text, regex in near)
        and not any(end.template.match(key) for end in ends)
    ]
    if strangers:
        _refuse(strangers, layout)


def _refuse(strangers: list[str], layout: Layout) -> NoReturn:
    reasons = {why for end, why in layout.refuses.items() for key in strangers if key.endswith(end)}
    verb, them = ("stand", "them") if len(strangers) > 1 else ("stands", "it")
    raise LayoutError(
        f"{_listed(strangers)} {verb} among the keys that layout {layout.name!r} rewrites, but no rule covers {them}"
        + "".join(f": {why}" for why in sorted(reasons))
        + "; leave out (drop(), --exclude) or register a layout with a rule"
    )


def _neighbourhoods(ends: list[End]) -> list[tuple[str, re.Pattern[str]]]:
    """(literal to look for first, regex) of each rule's neighbourhood."""
    found = {}
    for template, side, *_ in ends:
        literal, regex = template.neighbourhood(side.keys)
        found[regex.pattern] = (literal, regex)
    return list(found.values())


def _count_axes(
    ends: list[End],
    groups: Mapping[GroupId, Group],
    sizes: Mapping[str, int],
) -> dict[str, int]:
    """Sizes of key axes: the words of a template, config.json, or else the highest number that any key holds."""
    counts: dict[str, int] = {}
    for template, side, target, target_side, _ in ends:
        for axes, keys in ((side.keys, template), (target_side.keys, target)):
            counts |= {axis: len(keys.words[axis]) for axis in axes if axis in keys.words}
    for (number, _), group in groups.items():
        for place, axis in enumerate(ends[number][1].keys):
            if axis not in ends[number][0].words and axis not in sizes:
                counts[axis] = max(counts.get(axis, 0), 1 + max(index[place] for index in group))
    return counts


def _convert_group(
    group: Group, end: End, fixed: dict[str, str], sizes: dict[str, int]
) -> list[tuple[str, LazyTensor]]:
    """One group of source keys to its target keys."""
    template, side, target, target_side, rule = end
    lead = [sizes[axis] for axis in side.keys]

    def key_of(keys: KeyTemplate, axes: tuple[str, ...], index: tuple[int, ...]) -> str:
        return keys.format(fixed | {axis: keys.word(axis, at) for axis, at in zip(axes, index, strict=True)})

    if len(group) != prod(lead) or any(at >= size for index in group for at, size in zip(index, lead, strict=True)):
        wanted = list(product(*map(range, lead)))
        missing = [key_of(template, side.keys, index) for index in wanted if index not in group]
        extra = [key for index, (key, _) in group.items() if any(a >= b for a, b in zip(index, lead, strict=True))]
        expected = " x ".join(f"{axis}={sizes[axis]}" for axis in side.keys)
        goal = key_of(target, (), ()) if not target_side.keys else template.text
        if missing:
            raise MissingExpertsError(
                f"{goal} needs {prod(lead)} tensors ({expected}), {len(missing)} missing: {_listed(missing)}; "
                "is a shard incomplete, or does config.json state another number?"
            )
        raise LayoutError(f"{_listed(extra)}: beyond the {expected} that config.json states")
    nodes = tuple(group[index][1] for index in product(*map(range, lead)))
    keys = [group[index][0] for index in product(*map(range, lead))]
    for key, node in zip(keys, nodes, strict=True):
        if node.dims != nodes[0].dims or node.code != nodes[0].code:
            raise LayoutError(
                f"{key} is {node.code}{list(node.dims)}, but {keys[0]} of the same group is "
                f"{nodes[0].code}{list(nodes[0].dims)}; one of the two is wrong"
            )
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
        raise LayoutError(f"{keys[0]}: {error}") from error
    result = []
    for index, node in zip(product(*(range(known[axis]) for axis in there.keys)), made, strict=True):
        at = dict(zip(there.keys, index, strict=True))
        for copy in range(sizes[rule.shared]) if rule.shared in target_side.keys else (0,):
            full = tuple(at.get(axis, copy) for axis in target_side.keys)
            result.append((key_of(target, target_side.keys, full), node))
    return result


Nodes = tuple[LazyTensor, ...]


def _agreed(nodes: Nodes, keys: list[str], side: Side, shared: str | None, sizes: dict[str, int]) -> tuple[Nodes, Side]:
    """One node for all copies along a shared key axis; that they are copies is checked as they are read."""
    assert shared is not None
    rest = side.without(shared)
    copies: dict[tuple[int, ...], list[int]] = {}
    for flat, index in enumerate(product(*(range(sizes[axis]) for axis in side.keys))):
        place = tuple(at for axis, at in zip(side.keys, index, strict=True) if axis != shared)
        copies.setdefault(place, []).append(flat)
    agreed = (build(Agree(tuple(keys[k] for k in same)), [nodes[k] for k in same]) for same in copies.values())
    return tuple(agreed), rest


def _on_diagonal(nodes: Nodes, side: Side, axis: str, sizes: dict[str, int]) -> tuple[Nodes, Side]:
    """Each node among zeros, along a new first axis: its own index of the diagonal axis is where it stands."""
    number = side.keys.index(axis)
    zero = LazyTensor(Full(0.0), (), nodes[0].dims, nodes[0].code)
    stacked = []
    for index, node in zip(product(*(range(sizes[name]) for name in side.keys)), nodes, strict=True):
        row = [node if k == index[number] else zero for k in range(sizes[axis])]
        stacked.append(build(Stack((len(row),)), row))
    return tuple(stacked), Side(side.keys, ((axis + "'",), *side.groups))


def _listed(names: list[str]) -> str:
    """The first five names and how many there are."""
    more = f" and {len(names) - 5} more ({len(names)} in all)" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more

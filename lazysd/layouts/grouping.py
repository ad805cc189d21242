"""Which rule each key is of, and which keys belong together: what stands before any node is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, product
from math import prod
from typing import NoReturn

from ..errors import LayoutError, MissingExpertsError
from ..tensor.lazy import LazyTensor
from .keys import KeyTemplate, Neighbourhood, kind_of, parse_key
from .rule import End
from .whole import check_layers

Fixed = tuple[tuple[str, str], ...]  # fields by name
Group = dict[tuple[int, ...], tuple[str, LazyTensor]]  # index along the key axes -> key, node
GroupId = tuple[int, tuple[tuple[str, str], ...]]  # number of the rule, the fields that all keys of a group share
MAX_SHOWN = 200  # characters of a key in a message
MAX_KINDS = 10_000  # of keys, whose rules a table remembers


@dataclass(frozen=True)
class Table:
    """Rules in one direction, ready to be applied."""

    name: str  # of the layout, for messages
    ends: tuple[End, ...]
    refuses: Mapping[str, str] = field(default_factory=dict)  # as in Layout
    beside: tuple[str, ...] = ()  # likewise
    firsts: Mapping[str, int] = field(default_factory=dict)  # key axis -> the number at which it starts to count
    counts: Mapping[str, int] = field(default_factory=dict)  # sizes that only the hub's keys show
    stands: Mapping[int, frozenset[Fixed]] = field(default_factory=dict)  # number of a rule -> where it counts

    def among(self, keys: Iterable[str]) -> Table:
        """The same table, with its rules that count only in some layers held against these keys."""
        bound = {
            number: parse_key(end.rule.where)
            for number, end in enumerate(self.ends)
            if end.rule.where and end.template.text == end.rule.hf
        }
        if not bound:
            return self
        found: dict[str, set[Fixed]] = {template.text: set() for template in bound.values()}
        for template in {template.text: template for template in bound.values()}.values():
            found[template.text] |= {tuple(sorted(f.items())) for key in keys if (f := template.match(key)) is not None}
        return replace(self, stands={number: frozenset(found[template.text]) for number, template in bound.items()})

    def refused(self, key: str) -> list[str]:
        """Why a key is not carried: the reasons of the templates that it is of."""
        return [why for text, why in self.refuses.items() if "{" in text and _is_refused(key, text)]

    def _counts(self, claim: tuple[int, dict[str, str]]) -> bool:
        """Whether the rule of a claim counts with these fields."""
        stands = self.stands.get(claim[0])
        if stands is None:
            return True
        names = parse_key(self.ends[claim[0]].rule.where).fields
        return tuple(sorted((name, claim[1][name]) for name in names)) in stands

    def claims(self, key: str, sizes: Mapping[str, int]) -> tuple[int, dict[str, str]] | None:
        """(number of the rule, fields) of a key; None where no rule speaks of it.

        Renames give way to other rules, `{prefix}` to a prefix spelt out, a rename to one with more literal text, and
        numbers from 0 on to those that start later.
        Raises LayoutError where two rules have the same claim.
        """
        found = [(n, fields) for n, template in self._candidates(key) if (fields := template.match(key)) is not None]
        if self.stands:
            found = [claim for claim in found if self._counts(claim)]
        if len(found) > 1:
            found = [claim for claim in found if self._in_range(claim, sizes)] or found
            best = max(self._rank(n) for n, _ in found)
            found = [claim for claim in found if self._rank(claim[0]) == best]
        if len(found) > 1:
            both = " and ".join(repr(self.ends[n].template.text) for n, _ in found)
            raise LayoutError(f"{shown(key)}: claimed by two rules of layout {self.name!r}: {both}")
        return found[0] if found else None

    def _candidates(self, key: str) -> list[tuple[int, KeyTemplate]]:
        """The rules that may match a key, by its kind: a checkpoint of a million keys has a few dozen kinds."""
        kind = kind_of(key)
        found = self._by_kind.get(kind)
        if found is None:
            if len(self._by_kind) >= MAX_KINDS:
                self._by_kind.clear()
            found = [(n, end.template) for n, end in enumerate(self.ends) if end.template.may_match(kind)]
            self._by_kind[kind] = found
        return found

    @cached_property
    def _by_kind(self) -> dict[str, list[tuple[int, KeyTemplate]]]:
        return {}

    def _rank(self, number: int) -> tuple[bool, bool, int, int]:
        rename, template = self.ends[number].rule.rename, self.ends[number].template
        starts = max(template.shifts.values(), default=0)
        return (not rename, "prefix" not in template.fields, template.weight if rename else 0, starts)

    def _in_range(self, claim: tuple[int, dict[str, str]], sizes: Mapping[str, int]) -> bool:
        """Whether the numbers of a key lie where the key axes of the rule count, as far as that is known."""
        template, side = self.ends[claim[0]][:2]
        for axis in side.keys:
            if axis in template.words:
                continue
            at = template.number(axis, claim[1][axis]) - self.firsts.get(axis, 0)
            if at < 0 or at >= sizes.get(axis, at + 1):
                return False
        return True


@dataclass
class Grouped:
    """Keys by the rules that claim them."""

    groups: dict[GroupId, Group]
    order: list[str | GroupId]  # a key that passes through, or a group, where the first of its keys stood


def group_keys(
    tensors: Mapping[str, LazyTensor], table: Table, near: Iterable[Neighbourhood], sizes: Mapping[str, int]
) -> Grouped:
    """Sort keys into groups. Raises LayoutError: a key of a rule's kind that no rule covers, two of one place."""
    grouped, table = Grouped({}, []), table.among(tensors)
    strangers: list[str] = []
    near = list(near)
    beside = [parse_key(text) for text in table.beside if not parse_key(text).is_broad]
    refused = [parse_key(text) for text in table.refuses if "{" in text]
    for key, node in tensors.items():
        claim = table.claims(key, sizes)
        if claim is None or _is_broad(table.ends[claim[0]]):
            stands_near = any(place.holds(key) for place in near)
            known = any(template.match(key) is not None for template in (beside if stands_near else refused))
            if stands_near != known:
                strangers.append(key)
        if claim is None:
            grouped.order.append(key)
            continue
        number, fields = claim
        template, side = table.ends[number][:2]
        index = tuple([_index(template.number(axis, fields[axis]), axis, template.words, table) for axis in side.keys])
        ident = (number, tuple([item for item in fields.items() if item[0] not in side.keys]))
        group = grouped.groups.get(ident)
        if group is None:
            group = grouped.groups[ident] = {}
            grouped.order.append(ident)
        if index in group:
            raise LayoutError(
                f"{shown(group[index][0])} and {shown(key)} stand for the same place; leave one of them out"
            )
        group[index] = (key, node)
    if strangers:
        refuse(strangers, table)
    check_layers(table.ends, grouped.groups)
    return grouped


def _is_broad(end: End) -> bool:
    """Whether a rename covers whole modules, and so says nothing of a single key in them."""
    return end.rule.rename and end.template.is_broad


def _index(number: int, axis: str, words: Mapping[str, object], table: Table) -> int:
    return number if axis in words else number - table.firsts.get(axis, 0)


def neighbourhoods(ends: Iterable[End]) -> list[Neighbourhood]:
    """The neighbourhood of each rule that claims one."""
    found = {}
    for end in ends:
        if not end.rule.rename:
            place = end.template.neighbourhood(end.side.keys)
            found[place.pattern] = place
    return list(found.values())


def refuse(strangers: list[str], table: Table) -> NoReturn:
    """Raise the error for keys that stand among those a layout rewrites, and that it has no rule for."""
    reasons = {why for end, why in table.refuses.items() for key in strangers if _is_refused(key, end)}
    verb, them = ("stand", "them") if len(strangers) > 1 else ("stands", "it")
    raise LayoutError(
        f"{listed(strangers)} {verb} among the keys that layout {table.name!r} rewrites, but no rule covers {them}"
        + "".join(f": {why}" for why in sorted(reasons))
        + "; the result would lack what belongs to these weights; a layout of your own can have a rule for "
        + f"{them} (docs/layouts.md)"
    )


def _is_refused(key: str, end: str) -> bool:
    return parse_key(end).match(key) is not None if "{" in end else key.endswith(end)


def count_axes(table: Table, grouped: Grouped, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of key axes: the words of a template, config.json, or else the highest number that any key holds."""
    counts: dict[str, int] = dict(table.counts)
    for template, side, target, target_side, _ in table.ends:
        for axes, keys in ((side.keys, template), (target_side.keys, target)):
            counts |= {axis: len(keys.words[axis]) for axis in axes if axis in keys.words}
    for (number, _), group in grouped.groups.items():
        for place, axis in enumerate(table.ends[number].side.keys):
            if axis not in table.ends[number].template.words and axis not in sizes:
                counts[axis] = max(counts.get(axis, 0), 1 + max(index[place] for index in group))
    return counts


def check_group(
    group: Group, end: End, fixed: dict[str, str], sizes: Mapping[str, int], firsts: Mapping[str, int]
) -> None:
    """Raise LayoutError unless a group is complete, holds nothing beyond, and agrees in shape and dtype."""
    lead = [sizes[axis] for axis in end.side.keys]
    if len(group) != prod(lead) or any(
        not 0 <= at < size for index in group for at, size in zip(index, lead, strict=True)
    ):
        _incomplete(group, end, fixed, sizes, firsts)
    (first, model), *others = (group[index] for index in sorted(group))  # the same key is named, whatever came first
    for key, node in others:
        same = node.dims == model.dims or (end.side.parts is not None and node.ndim == model.ndim)
        if not same or node.code != model.code:
            raise LayoutError(
                f"{shown(key)} is {node.code}{list(node.dims)}, but {shown(first)} of the same group is "
                f"{model.code}{list(model.dims)}; one of the two is wrong"
            )


def _incomplete(
    group: Group, end: End, fixed: dict[str, str], sizes: Mapping[str, int], firsts: Mapping[str, int]
) -> NoReturn:
    """Say what is missing or too much; a config that states a thousand million experts costs nothing."""
    lead = [sizes[axis] for axis in end.side.keys]
    expected = " x ".join(f"{axis}={sizes[axis]}" for axis in end.side.keys)
    extra = [key for i, (key, _) in group.items() if any(not 0 <= a < b for a, b in zip(i, lead, strict=True))]
    num_missing = prod(lead) - (len(group) - len(extra))
    if not num_missing:
        raise LayoutError(f"{listed(extra)}: beyond the {expected} that config.json states")
    wanted = (index for flat in range(prod(lead)) if (index := _unravelled(flat, lead)) not in group)
    missing = [key_of(end.template, end.side.keys, index, fixed, firsts) for index in islice(wanted, 5)]
    goal = key_of(end.target, (), (), fixed, firsts) if not end.target_side.keys else end.template.text
    raise MissingExpertsError(
        f"{goal} needs {prod(lead)} tensors ({expected}), {num_missing} missing: {listed(missing, num_missing)}; "
        "is a shard incomplete, or does config.json state another number?"
    )


def _unravelled(flat: int, lead: list[int]) -> tuple[int, ...]:
    """The index of a place, row-major. (itertools.product would first write down every number of every axis.)"""
    index = []
    for size in reversed(lead):
        flat, at = divmod(flat, size)
        index.append(at)
    return tuple(reversed(index))


def key_of(
    template: KeyTemplate,
    axes: tuple[str, ...],
    index: tuple[int, ...],
    fixed: dict[str, str],
    firsts: Mapping[str, int],
) -> str:
    """The key at an index of the key axes."""
    return writer(template, axes, fixed, firsts)(index)


def writer(
    template: KeyTemplate, axes: tuple[str, ...], fixed: dict[str, str], firsts: Mapping[str, int]
) -> Callable[[tuple[int, ...]], str]:
    """What writes the key at an index of the key axes; the rest of the key is put together once."""
    pieces = [token.spelt(fixed) if token.text in fixed or token.kind == "literal" else "" for token in template.tokens]
    named = [None if token.kind == "literal" else token.text for token in template.tokens]
    fields = [(named.index(axis), number) for number, axis in enumerate(axes)]
    words = [template.words.get(axis) for axis in axes]
    starts = [firsts.get(axis, 0) for axis in axes]

    def write(index: tuple[int, ...]) -> str:
        for place, axis in fields:
            spelt = words[axis]
            pieces[place] = spelt[index[axis]] if spelt else str(index[axis] + starts[axis])
        return "".join(pieces)

    return write


def shown(key: str) -> str:
    """A key in a message; one of thousands of characters is cut."""
    return key if len(key) <= MAX_SHOWN else f"{key[:MAX_SHOWN]}… ({len(key)} characters)"


def listed(names: list[str], count: int | None = None) -> str:
    """The first five names and how many there are."""
    count = len(names) if count is None else count
    more = f" and {count - 5} more ({count} in all)" if count > 5 else ""
    return ", ".join(map(shown, names[:5])) + more


def indices(lead: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Every index along key axes, row-major."""
    return product(*map(range, lead))

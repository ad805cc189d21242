"""Rules and layouts: a table of one-line axis patterns, which rewriting.py applies in either direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

from ..arguments import checked
from ..errors import LayoutError
from ..stores.strict_json import printable
from . import sizes as stated_sizes
from .keys import KeyTemplate, parse_key
from .pattern import Side, parse_axes

MAX_SHOWN = 4  # rules of a repr


@checked
@dataclass(frozen=True)
class Rule:
    """One line of a layout: keys of the hub on the left, keys of the layout on the right, axes in between.

    The same line read from right to left is the inverse. `hf` names the hub's keys: Hugging Face per-expert weights
    and what other rooms group beside them. Raises LayoutError where the line is no bijection.
    """

    hf: str  # key template of the hub
    to: str  # key template of the layout
    axes: str = "... -> ..."  # axis pattern, hub -> layout
    shared: str | None = None  # key axis of the layout that the hub lacks: copies, which on the way back have to agree
    diagonal: str | None = None  # axis that the hub has twice: blocks on a diagonal of zeros; no way back to the layout
    rename: bool = False  # claims no neighbourhood, and gives way to rules that say more of a key
    where: str = ""  # of a rename: key template of the hub that stands with the same fields, where the rule counts

    def __post_init__(self) -> None:
        try:
            _check(self.hf, self.to, self.axes, self.shared, self.diagonal, self.where, self.rename)
        except ValueError as error:
            raise LayoutError(f"bad rule {self.hf!r} -> {self.to!r}: {error}") from error

    def ends(self, forward: bool) -> End:
        """Both ends in the order of travel: from the hub (forward) or to it."""
        left, right = parse_axes(self.axes, self.shared, self.diagonal)
        here, there = (parse_key(self.hf), left), (parse_key(self.to), right)
        return End(*here, *there, self) if forward else End(*there, *here, self)

    def bound(self, sizes: Mapping[str, int]) -> Rule:
        """The rule with the shifts of its key templates that config.json states filled in; itself where it has none."""
        if not self.afters:
            return self
        hf, to, where = (parse_key(text).bound(sizes) for text in (self.hf, self.to, self.where))
        return replace(self, hf=hf, to=to, where=where)

    @property
    def afters(self) -> tuple[str, ...]:
        """What config.json calls the shifts that are not filled in; until they are, the rule is of no key."""
        return (*parse_key(self.hf).afters, *parse_key(self.to).afters)

    @property
    def is_identity(self) -> bool:
        """Whether keys and axes stay as they are."""
        left, right = parse_axes(self.axes, self.shared, self.diagonal)
        return self.hf == self.to and left == right


@cache  # families share many a line
def _check(hf: str, to: str, axes: str, shared: str | None, diagonal: str | None, where: str, rename: bool) -> None:
    """Raise ValueError where a line is no bijection, or could be read in two ways."""
    left, right = parse_axes(axes, shared, diagonal)
    here, there = parse_key(hf), parse_key(to)
    for template, side in ((here, left), (there, right)):
        _check_axes(template, side)
    fixed = [set(here.fields) - set(left.keys), set(there.fields) - set(right.keys)]
    if fixed[0] != fixed[1]:
        raise ValueError(f"fields {sorted(fixed[0] ^ fixed[1])} stand in one key template only")
    if where and not (rename and set(parse_key(where).fields) <= fixed[0]):
        raise ValueError(f"where {where!r} is for a rename, and has only fields that both key templates carry")
    for name in sorted(fixed[0]):
        _check_same(name, here, there)
    for axis in sorted(set(left.keys) & set(right.keys)):
        _check_count(axis, here, there)


def _check_axes(template: KeyTemplate, side: Side) -> None:
    """Every key axis is a field that counts, and unequal parts have a word each."""
    absent = [axis for axis in side.keys if axis not in template.fields]
    if absent:
        raise ValueError(f"key template {template.text!r} has no field for key axes {absent}")
    if shifted := [axis for axis in side.keys if axis in template.shifts]:
        raise ValueError(
            f"key axis {shifted[0]} of {template.text!r} counts from what `firsts` says, and takes no shift"
        )
    for axis in side.keys:
        if template.kind(axis) not in ("number", "words"):
            raise ValueError(f"key axis {axis} of {template.text!r} should be a number or words, which count")
    if side.orders and len(template.words.get(side.keys[0], ())) != len(side.orders):
        raise ValueError(f"{template.text!r} should have one word of {side.keys[0]} for each order of {side.orders[0]}")
    if side.parts and side.keys and len(template.words.get(side.keys[0], ())) != side.parts.count("+") + 1:
        raise ValueError(f"{template.text!r} should have one word of {side.keys[0]} for each part of ({side.parts})")


def _check_same(name: str, here: KeyTemplate, there: KeyTemplate) -> None:
    """A field that is no key axis is carried as it is, so both sides allow the same."""
    if here.kind(name) != there.kind(name) or set(here.words.get(name, ())) != set(there.words.get(name, ())):
        raise ValueError(
            f"the words of {name} do not correspond: a field that is no key axis is carried as it is, so both key "
            f"templates allow the same; as a key axis, [{name}], words stand for each other in their order"
        )


def _check_count(axis: str, here: KeyTemplate, there: KeyTemplate) -> None:
    """Words of a key axis stand for each other by their place."""
    counts = [len(template.words[axis]) for template in (here, there) if axis in template.words]
    if len(set(counts)) > 1:
        raise ValueError(f"key axis {axis} has {counts[0]} words on one side and {counts[1]} on the other")


class End(NamedTuple):
    """A rule in one direction."""

    template: KeyTemplate
    side: Side
    target: KeyTemplate
    target_side: Side
    rule: Rule


@checked
@dataclass(frozen=True, repr=False)
class Layout:
    """A named way to write a family's tensors: rules to and from the hub; keys no rule speaks of pass through."""

    name: str
    family: str
    rules: tuple[Rule, ...] = ()
    description: str = ""
    sizes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # axis -> names of its size in config.json
    companion: Any = None  # what a room above keeps with the layout; nothing in this one looks at it
    merged: tuple[Rule, ...] = ()  # in place of `rules`, to the hub, where the caller asks for it
    # End of a key that no rule covers -> why it is not carried. A key template is refused wherever it stands.
    refuses: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()  # templates of keys that may stand among those the rules rewrite, and pass through
    firsts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # key axis -> names of the number it starts at
    source: str = ""  # where the table is from, and what it was tested against

    def __post_init__(self) -> None:
        for table in ("sizes", "firsts"):
            texts = {
                axis: (names,) if isinstance(names, str) else tuple(names)
                for axis, names in getattr(self, table).items()
            }
            object.__setattr__(self, table, texts)
        object.__setattr__(self, "rules", tuple(self.rules))
        for side in (0, 1):
            names = [(rule.hf + rule.where, rule.to)[side] for rule in self.rules]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise LayoutError(f"layout {self.name!r}: two rules name the same keys {twice!r}")

    def __repr__(self) -> str:
        lines = [f"Layout {self._head()}"]
        for rule in self.rules[:MAX_SHOWN]:
            lines += [f"  {rule.hf}", f"    -> {rule.to}  {rule.axes}"]
        left = len(self.rules) - MAX_SHOWN
        return "\n".join(map(printable, lines + ([f"  … and {left} more rules"] if left > 0 else [])))

    def _head(self) -> str:
        said = f": {self.description}" if self.description else ""
        return f"{self.name!r} of {self.family}, {len(self.rules)} rule{'s' if len(self.rules) != 1 else ''}{said}"

    def _repr_html_(self) -> str:
        from ..display import page

        count = page.fitting(f"{rule.hf}{rule.to}" for rule in self.rules)
        pairs = "".join(
            f'<li class="r">{page.name(rule.hf)}</li><li class="r to">{page.name("→ " + rule.to)} '
            f'<span class="s m">{page.shown(rule.axes, page.MAX_NAME)}</span></li>'
            for rule in self.rules[:count]
        )
        left = page.more(len(self.rules) - count, "rule")
        about = page.facts([("from", self.source)] if self.source else [])
        return page.frame(f"<p><b>Layout</b> {page.shown(self._head())}</p>{about}<ul>{pairs}</ul>{left}", repr(self))

    @property
    def is_hub(self) -> bool:
        """Whether every rule leaves its keys and axes as they are."""
        return all(rule.is_identity for rule in self.rules)

    @cached_property
    def own_keys(self) -> tuple[KeyTemplate, ...]:
        """Key templates by which a checkpoint of this layout is recognised."""
        return tuple(parse_key(rule.to) for rule in self.rules if not rule.rename)

    def config_sizes(self, config: Mapping[str, object] | None) -> dict[str, int]:
        """Axis sizes that config.json states, sub-configs included; the number of experts under any of its names."""
        return stated_sizes.config_sizes(config, self.sizes)

    def bound(self, config: Mapping[str, object] | None) -> Layout:
        """With the shifts of key templates ({layer:+num_hidden_layers}) filled in, as far as config.json goes."""
        names = {name for rule in self.rules for name in rule.afters}
        sizes = stated_sizes.config_sizes(config, {name: (name,) for name in names}) if names else {}
        return replace(self, rules=tuple(rule.bound(sizes) for rule in self.rules)) if sizes else self

    def config_firsts(self, config: Mapping[str, object] | None) -> dict[str, int]:
        """Numbers at which key axes start to count, where that is not 0."""
        return stated_sizes.config_sizes(config, self.firsts)

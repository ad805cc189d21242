"""Rules and layouts: a table of one-line axis patterns, which rewriting.py applies in either direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from ..errors import LayoutError
from .pattern import KeyTemplate, Side, parse_axes, parse_key


@dataclass(frozen=True)
class Rule:
    """One line of a layout: keys of the hub on the left, keys of the layout on the right, axes in between.

    The same line read from right to left is the inverse. `hf` names the hub's keys: Hugging Face per-expert weights
    and, for adapters, NeMo's grouped LoRA tensors.
    """

    hf: str  # key template of the hub
    to: str  # key template of the layout
    axes: str  # axis pattern, hub -> layout
    shared: str | None = None  # key axis of the layout that the hub lacks: copies, which on the way back have to agree
    diagonal: str | None = None  # axis that the hub has twice: blocks on a diagonal of zeros; no way back to the layout

    def __post_init__(self) -> None:
        try:
            left, right = parse_axes(self.axes, self.shared, self.diagonal)
            for template, side in ((parse_key(self.hf), left), (parse_key(self.to), right)):
                absent = [axis for axis in side.keys if axis not in template.fields]
                if absent:
                    raise ValueError(f"key template {template.text!r} has no field for key axes {absent}")
            fixed = [set(parse_key(key).fields) - set(side.keys) for key, side in ((self.hf, left), (self.to, right))]
            if fixed[0] != fixed[1]:
                raise ValueError(f"fields {sorted(fixed[0] ^ fixed[1])} stand in one key template only")
        except ValueError as error:
            raise LayoutError(f"bad rule {self.hf!r} -> {self.to!r}: {error}") from error

    def ends(self, forward: bool) -> End:
        """Both ends in the order of travel: from the hub (forward) or to it."""
        left, right = parse_axes(self.axes, self.shared, self.diagonal)
        here, there = (parse_key(self.hf), left), (parse_key(self.to), right)
        return End(*here, *there, self) if forward else End(*there, *here, self)


class End(NamedTuple):
    """A rule in one direction."""

    template: KeyTemplate
    side: Side
    target: KeyTemplate
    target_side: Side
    rule: Rule


@dataclass(frozen=True)
class LoraNames:
    """How adapters call a family's expert parameters. PEFT wraps `inner` first, so that `outer` wraps the wrapper."""

    experts: str  # key template of the experts' module, up to its last dot
    inner: str = "gate_up_proj"  # its keys carry `base_layer.` where both parameters are wrapped
    outer: str = "down_proj"
    inner_words: tuple[str, ...] = ("gate_proj", "up_proj")  # what `inner` is made of, expert by expert

    @property
    def gated(self) -> bool:
        """Whether `inner` is gate beside up."""
        return len(self.inner_words) > 1


@dataclass(frozen=True)
class Layout:
    """A named way to write a family's tensors: rules to and from the hub; keys no rule speaks of pass through."""

    name: str
    family: str
    rules: tuple[Rule, ...] = ()
    description: str = ""
    sizes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # axis -> names of its size in config.json
    lora: LoraNames | None = None  # how adapters call the experts' parameters
    merged: tuple[Rule, ...] = ()  # in place of `rules`, to the hub: gate and up become one parameter of twice the rank
    refuses: Mapping[str, str] = field(default_factory=dict)  # end of a key no rule covers -> why it is not carried

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        keys = [(rule.hf, rule.to) for rule in self.rules]
        for side in (0, 1):
            names = [pair[side] for pair in keys]
            if len(set(names)) != len(names):
                raise LayoutError(f"layout {self.name!r}: two rules name the same keys {max(names, key=names.count)!r}")

    @property
    def is_hub(self) -> bool:
        """Whether every rule leaves its keys and axes as they are."""
        return all(rule.hf == rule.to for rule in self.rules)

    @cached_property
    def own_keys(self) -> tuple[KeyTemplate, ...]:
        """Key templates by which a checkpoint of this layout is recognised."""
        return tuple(parse_key(rule.to) for rule in self.rules)

    def config_sizes(self, config: Mapping[str, object] | None) -> dict[str, int]:
        """Axis sizes that config.json states; names are tried in order, nested text_config included."""
        found: dict[str, int] = {}
        nested = config.get("text_config") if config else None
        for axis, names in self.sizes.items():
            for table in (config or {}, nested if isinstance(nested, Mapping) else {}):
                for name in names:
                    value = table.get(name)
                    if axis not in found and isinstance(value, int) and not isinstance(value, bool) and value > 0:
                        found[axis] = value
        return found

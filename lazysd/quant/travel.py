"""Scales travel with weights: converting between layouts what stays quantised, codes and scales by the same rules.

The engine knows nothing of it. It converts the plain weights (whose graph tells which keys move, and what shapes they
get), then the codes, then each kind of companion under its weight's key. What cannot be said in the other layout is
refused: blocks that would straddle gate and up, packed columns that would have to be transposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import LayoutError
from ..graph.building import many_nodes
from ..layouts.choosing import Choice
from ..layouts.keys import parse_key
from ..layouts.pattern import parse_axes
from ..tensor.lazy import LazyTensor
from . import registry
from .base import FLOATS, Settings, Weight
from .companions import ADVICE, Kind, kind_of
from .cutting import rule_of
from .moving import Moving, carried_to

Tensors = Mapping[str, LazyTensor]


class Load:
    """The quantised weights among the tensors of a checkpoint."""

    def __init__(self, tensors: Tensors, settings: Settings, code: str = "BF16"):
        self.tensors, self.settings, self._code = tensors, settings, code
        self.weights: dict[str, Weight] = {}  # by the key of the plain weight
        self._error: LayoutError | None = None  # why some are carried as tensors like others
        self.plain: dict[str, Any] = dict(tensors)  # each quantised weight as the plain one it stands for
        try:
            found = registry.find(tensors, settings)
        except LayoutError as error:
            self._error = error
        else:
            if found:
                self._decode(found)

    def _decode(self, weights: list[Weight]) -> None:
        made: dict[str, tuple[Weight, Any]] = {}
        for weight in weights:
            try:
                made[weight.parts["codes"]] = weight, registry.decode(weight, self.tensors, self._code, self.settings)
            except LayoutError as error:
                self._error = self._error or error
        parts = set(registry.parts_of(weight for weight, _ in made.values()))
        self.plain = {}
        for key, node in self.tensors.items():
            if key in made:
                weight, decoded = made[key]
                self.plain[weight.key], self.weights[weight.key] = decoded, weight
            elif key not in parts:
                self.plain[key] = node

    def restated(self, config: Mapping[str, Any] | None, stated: Mapping[str, Any] | None) -> Load:
        """The same where a caller says over config.json how weights are quantised; itself where nothing is said."""
        said = registry.settings_of(stated)
        return Load(self.tensors, said, self._code) if said and said != registry.settings_of(config) else self

    @contextmanager
    def explained(self) -> Iterator[Load]:
        """Around what the layouts do: where they refuse parts that make no whole weights, the error says why."""
        try:
            yield self
        except LayoutError as error:
            if self._error is None:
                raise
            raise self._error from error

    def check(self, choice: Choice) -> None:
        """Raise LayoutError where a group of experts is quantised in several ways, or in part."""
        if not self.weights or choice.origin is choice.target:
            return
        seen: dict[tuple[str, ...], tuple[str, Kind | None]] = {}
        for key in self.plain:
            rule = rule_of(choice.origin, key)
            if rule is None or not (axes := parse_axes(rule.axes, rule.shared, rule.diagonal)[1].keys):
                continue
            fields = parse_key(rule.to).match(key) or {}
            group = (rule.to, *(text for name, text in fields.items() if name not in axes))
            kind = self._kind(key)
            first, other = seen.setdefault(group, (key, kind))
            if kind != other:
                raise LayoutError(self._mixture((first, other), (key, kind)))

    def _kind(self, key: str) -> Kind | None:
        return kind_of(self.weights[key], self.tensors) if key in self.weights else None

    def _mixture(self, *both: tuple[str, Kind | None]) -> str:
        """Why two weights cannot stand in one group."""
        (plain, none), (key, kind) = sorted(both, key=lambda found: found[1] is not None)
        if kind is not None and none is None and self.plain[plain].code not in FLOATS:
            suffixes = {role: self.weights[key].parts[role] for role in self.weights[key].scheme.forms[0].required}
            lacking = " and ".join(part for role, part in suffixes.items() if role != "codes")
            return (
                f"{plain} is {self.plain[plain].code} and nothing scales it, but beside {key} of the same group stands "
                f"{lacking}; is a shard missing?"
            )
        said = (self._described(plain, none), self._described(key, kind))
        return f"experts of one group are quantised in several ways: {said[0]}, {said[1]}; {ADVICE}"

    def _described(self, key: str, kind: Kind | None) -> str:
        if kind is None:
            return f"{key} is plain ({self.plain[key].code})"
        with_ = ", ".join(f"{role} ({stored})" for role, stored in kind.companions.items())
        return f"{key} is {kind.scheme} with {with_}"

    @many_nodes()
    def carried(self, made: dict[str, LazyTensor], choice: Choice) -> dict[str, LazyTensor]:
        """The converted tensors, what was quantised still quantised.

        Args:
            made: `plain`, converted.
            choice: from which layout to which, and by which sizes.

        Raises:
            LayoutError: with the reason why a weight cannot stay quantised.
        """
        if not self.weights:
            return made
        decoded = {id(self.plain[key]): weight for key, weight in self.weights.items()}
        stays = {key: decoded[id(node)] for key, node in made.items() if id(node) in decoded}
        parts = self._converted(made, {weight.key for weight in stays.values()}, choice)
        result: dict[str, Any] = {}
        for key, node in made.items():
            if key in stays:  # the very same weight, perhaps under another name
                weight = stays[key]
                if key == weight.key:
                    result |= {weight.parts[role]: node for role, node in weight.nodes(self.tensors).items()}
                else:
                    scheme, names = carried_to(key, weight, False)
                    result |= {names[role]: node for role, node in scheme.unlaid(weight.laid(self.tensors)).items()}
            elif key in parts:
                result |= parts[key]
            else:
                result[key] = node
        return result

    def _converted(self, made: Tensors, stays: set[str], choice: Choice) -> dict[str, dict[str, Any]]:
        """Key in the target -> the tensors that stand for it."""
        kinds: dict[Kind, list[Weight]] = {}
        for key, weight in self.weights.items():
            if key not in stays:
                kinds.setdefault(kind_of(weight, self.tensors), []).append(weight)
        result: dict[str, dict[str, Any]] = {}
        for kind, weights in kinds.items():
            moving = Moving(self.tensors, self.plain, kind, weights, choice, self.settings)
            result |= moving.parts(made)
        return result


def load(tensors: Tensors, config: Mapping[str, Any] | None, code: str = "BF16") -> Load:
    """What is quantised among some tensors, and as plain weights of dtype `code`. Builds nodes; reads nothing."""
    return Load(tensors, registry.settings_of(config), code)

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
from ..layouts.converting import convert
from ..layouts.keys import parse_key
from ..layouts.pattern import parse_axes
from ..layouts.rule import Layout, Rule
from ..tensor.lazy import LazyTensor
from . import registry
from .base import FLOATS, Scheme, Settings, Weight
from .companions import ADVICE, Kind, as_matrix, as_stored, kind_of
from .cutting import has_parts, hub_of, is_turned, moving_axes, part_axes, refuse_straddling, rule_of, turned_of

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
                    scheme, names = _carried(key, weight, False)
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
            moving = _Moving(self.tensors, self.plain, kind, weights, choice, self.settings)
            result |= moving.parts(made)
        return result


class _Moving:
    """Weights of one kind on their way from one layout to another."""

    def __init__(
        self, tensors: Tensors, plain: Tensors, kind: Kind, weights: list[Weight], choice: Choice, settings: Settings
    ):
        self._tensors, self._plain, self._kind, self._weights = tensors, plain, kind, weights
        self._choice, self._settings, self._scheme = choice, settings, weights[0].scheme
        self._parts = part_axes(choice.origin) | part_axes(choice.target)
        self._free = moving_axes(choice.origin) | moving_axes(choice.target)
        self._laid: dict[str, dict[str, Any]] = {weight.key: weight.laid(tensors) for weight in weights}
        self._checked: set[tuple[Any, ...]] = set()

    def parts(self, made: Tensors) -> dict[str, dict[str, Any]]:
        """Key in the target -> the tensors that stand for it. `made` holds the plain weights in the target."""
        for weight in self._weights:
            nodes = weight.nodes(self._tensors)
            self._check(self._scheme, weight.key, nodes, self._plain[weight.key], self._choice.origin)
        with self._naming("codes"):
            moved = self._moved({weight.key: self._laid[weight.key]["codes"] for weight in self._weights}, 1)
        codes = {key: node for key, node in moved.items() if key in made and node.code != made[key].code}
        turned = self._turned(codes)
        by_role: dict[str, dict[str, Any]] = {key: {"codes": node} for key, node in codes.items()}
        for role, stored in self._kind.companions.items():
            with self._naming(role):
                found = self._moved(
                    {weight.key: self._matrix(weight, role, stored) for weight in self._weights},
                    self._rows(role) if stored == "full" else 1,
                )
                for key, node in codes.items():
                    by_role[key][role] = as_stored(found[key], node, stored, self._scheme.number_dims(self._settings))
        result: dict[str, dict[str, Any]] = {}
        for key, laid in by_role.items():
            scheme, names = _carried(key, self._weights[0], key in turned)
            parts = scheme.unlaid(laid)
            self._check(scheme, key, parts, made[key], self._choice.target)
            result[key] = {names[role]: node for role, node in parts.items()}
        return result

    def _rows(self, role: str) -> int:
        """How many rows of the codes share one of a part."""
        nodes: Mapping[str, LazyTensor] = self._laid[self._weights[0].key]
        cell = self._scheme.cell(nodes, self._settings)
        if role == "scale" and "zero_point" not in nodes and cell is not None:
            return cell[0]
        return max(nodes["codes"].dims[-2] // max(nodes[role].dims[-2], 1), 1)

    def _matrix(self, weight: Weight, role: str, stored: str) -> LazyTensor:
        turned = is_turned(self._choice.origin, weight.key)
        return as_matrix(weight, role, stored, turned, self._settings, self._laid[weight.key])

    def _moved(self, parts: dict[str, LazyTensor], rows: int) -> dict[str, LazyTensor]:
        """Parts by the rules of their weights. What else the rules speak of goes along, so that no layer lacks it."""
        sizes = {
            axis: size // rows if axis in self._parts else size
            for axis, size in self._choice.sizes.items()
            if axis not in self._free
        }
        origin, target = self._choice.origin, self._choice.target
        beside = {
            key: node
            for key, node in self._plain.items()
            if key not in parts and not has_parts(origin, key, hub=False) and not has_parts(target, key, hub=True)
        }
        return convert({**beside, **parts}, origin, target, sizes, self._choice.firsts)

    @contextmanager
    def _naming(self, role: str) -> Iterator[None]:
        """Errors of the engine, which calls a part by the key of its weight, under the part's own name."""
        try:
            yield
        except LayoutError as error:
            said, part = str(error).removesuffix(ADVICE).rstrip("; "), self._weights[0].parts[role]
            raise LayoutError(f"{'' if said.startswith(part) else part + ': '}{said}; {ADVICE}") from error

    def _turned(self, codes: Tensors) -> set[str]:
        """The keys whose rows have become columns. Refuses what has a meaning along columns only."""
        first, origin, target = self._weights[0], self._choice.origin, self._choice.target
        was = turned_of(origin, (weight.key for weight in self._weights))
        rules = {key: rule for key in codes if (rule := rule_of(target, key)) is not None}
        turned = {key for key, rule in rules.items() if is_turned(target, key) != was.get(hub_of(rule), False)}
        may = self._scheme.keeps_rows or self._scheme.turns(first.nodes(self._tensors), self._settings)
        if turned and not may:
            raise LayoutError(
                f"{first.parts['codes']} and {first.parts['scale']} would have to be transposed for layout "
                f"{target.name!r}, which {self._scheme.name} codes and scales cannot be; {ADVICE}"
            )
        return turned

    def _check(self, scheme: Scheme, key: str, parts: Mapping[str, Any], plain: LazyTensor, layout: Layout) -> None:
        """Refuse parts whose blocks a layout would cut, or mix. `plain` is the plain weight in the layout."""
        rule = rule_of(layout, key)
        seen = (layout.name, rule and rule.to, plain.dims, *((role, node.dims) for role, node in parts.items()))
        if seen in self._checked:
            return
        self._checked.add(seen)
        shown = self._behind(key, layout, rule).parts["scale"]
        try:
            cell = scheme.cell(parts, self._settings)
            if cell is None:
                raise LayoutError(f"{scheme.name} stores a weight so that it cannot be split")
            refuse_straddling(key, layout, plain.dims, cell, self._choice.sizes)
            dims = scheme.dims(parts, self._settings)
            if dims != plain.dims:
                raise LayoutError(f"codes and scales of {list(dims)} stand for {list(plain.dims)}")
        except (ValueError, LayoutError) as error:
            raise LayoutError(f"{shown}: {error}; {ADVICE}") from error

    def _behind(self, key: str, layout: Layout, rule: Rule | None) -> Weight:
        """A weight that a key of a layout is made of."""
        origin = self._choice.origin
        for weight in self._weights:
            if layout is origin and weight.key == key:
                return weight
            if layout is not origin and rule is not None:
                before = rule_of(origin, weight.key)
                if hub_of(before) == hub_of(rule) if before is not None else parse_key(rule.hf).match(weight.key):
                    return weight
        return self._weights[0]


def _carried(key: str, weight: Weight, turned: bool) -> tuple[Scheme, dict[str, str]]:
    """The scheme of the weight that is called `key` now, and role -> key of its parts."""
    found = weight.scheme.carried_as(key, turned)
    if found is None:
        raise LayoutError(
            f"{weight.key} becomes {key}, for which {weight.scheme.name} has no names for codes and scales; {ADVICE}"
        )
    scheme, form = found
    stem = key.removesuffix(form.weight)
    return scheme, {role: stem + end for role, end in form.suffixes.items()}


def load(tensors: Tensors, config: Mapping[str, Any] | None, code: str = "BF16") -> Load:
    """What is quantised among some tensors, and as plain weights of dtype `code`. Builds nodes; reads nothing."""
    return Load(tensors, registry.settings_of(config), code)

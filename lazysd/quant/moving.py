"""Weights of one kind on their way from one layout to another: codes, then each companion, by the weights' rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..errors import LayoutError
from ..graph.boxes import Dims
from ..layouts.choosing import Choice
from ..layouts.converting import convert
from ..layouts.grouping import Table
from ..layouts.keys import parse_key
from ..layouts.rewriting import apply_table
from ..layouts.rule import Layout, Rule
from ..tensor.lazy import LazyTensor
from .base import Scheme, Settings, Weight
from .companions import ADVICE, Kind, as_matrix, as_stored
from .cutting import (
    has_parts,
    hub_of,
    is_turned,
    moving_axes,
    part_axes,
    parts_of,
    refuse_straddling,
    rule_of,
    turned_of,
)
from .uncut import moves

Tensors = Mapping[str, LazyTensor]
_OF_WEIGHTS = ("scale", "global_scale", "zero_point")  # what a decoded weight depends on


class Moving:
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
        self._uncut: Table | None = None  # rules that move matrices as wholes, where blocks would straddle their parts

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
                matrices = {weight.key: self._matrix(weight, role, stored) for weight in self._weights}
                found = self._moved(matrices, self._rows(role, stored))
                dims = self._number_dims(role)
                for key, node in codes.items():
                    joins = self._joins(role, key, key in turned, node.ndim > 2)
                    by_role[key][role] = as_stored(found[key], node, stored, dims, joins)
        result: dict[str, dict[str, Any]] = {}
        for key, laid in by_role.items():
            scheme, names = carried_to(key, self._weights[0], key in turned)
            parts = scheme.unlaid(laid)
            self._check(scheme, key, parts, made[key], self._choice.target)
            result[key] = {names[role]: node for role, node in parts.items()}
        return result

    def _rows(self, role: str, stored: str) -> int:
        """How many rows of the codes share one of a part; 0: all of them."""
        if stored != "full":
            return int(stored == "rows")
        nodes: Mapping[str, LazyTensor] = self._laid[self._weights[0].key]
        cell = self._scheme.cell(nodes, self._settings)
        if role == "scale" and "zero_point" not in nodes and cell is not None:
            return cell[0]
        return max(nodes["codes"].dims[-2] // max(nodes[role].dims[-2], 1), 1)

    def _matrix(self, weight: Weight, role: str, stored: str) -> LazyTensor:
        turned = is_turned(self._choice.origin, weight.key)
        parts = parts_of(weight.key, self._choice.origin, self._choice.target)[0]
        return as_matrix(weight, role, stored, turned, parts, self._laid[weight.key])

    def _number_dims(self, role: str) -> Dims:
        """The shape of one number by itself: that of the source where it says, else what programs write."""
        nodes = [laid[role] for laid in self._laid.values() if laid["codes"].ndim == 2]
        there = {node.dims for node in nodes} if len(nodes) == len(self._laid) else set()
        return there.pop() if len(there) == 1 and nodes[0].numel() == 1 else self._scheme.number_dims(self._settings)

    def _joins(self, role: str, key: str, turned: bool, is_stack: bool) -> str | None:
        """What a number of weights is called that they have to share in the target; None where each keeps its own."""
        if role not in _OF_WEIGHTS:
            return None
        scheme, names = carried_to(key, self._weights[0], turned)
        halves = parts_of(key, self._choice.target, self._choice.origin)[1]
        rows_first = scheme.rows_last == is_turned(self._choice.target, key)
        return None if is_stack and rows_first and halves else names[role]

    def _moved(self, parts: dict[str, LazyTensor], rows: int) -> dict[str, LazyTensor]:
        """Parts by the rules of their weights, of which they have one row for `rows`, or one for all (0).

        What else the rules speak of goes along, so that no layer lacks it.
        """
        if self._uncut is not None:
            return apply_table(parts, replace(self._uncut, firsts=self._choice.firsts), self._choice.sizes, ())
        sizes = {
            axis: (size // rows if rows else 1) if axis in self._parts else size
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
        other = next((found for key in turned if (found := self._scheme.carried_as(key, True)) is not None), None)
        may = self._scheme.keeps_rows or self._scheme.turns(first.nodes(self._tensors), self._settings)
        if turned and not may and (other is None or other[0] is self._scheme):
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
            self._refuse_cuts(key, layout, plain.dims, cell)
            dims = scheme.dims(parts, self._settings)
            if dims != plain.dims:
                raise LayoutError(f"codes and scales of {list(dims)} stand for {list(plain.dims)}")
        except (ValueError, LayoutError) as error:
            raise LayoutError(f"{shown}: {error}; {ADVICE}") from error

    def _refuse_cuts(self, key: str, layout: Layout, dims: Dims, cell: tuple[int, int]) -> None:
        """Refuse blocks that a layout would cut, unless the conversion moves every matrix as a whole."""
        if self._uncut is not None or self._kind.companions.get("scale") == "number":
            return
        try:
            refuse_straddling(key, layout, dims, cell, self._choice.sizes)
        except LayoutError:
            self._uncut = moves((weight.key for weight in self._weights), self._choice.origin, self._choice.target)
            if self._uncut is None:
                raise

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


def carried_to(key: str, weight: Weight, turned: bool) -> tuple[Scheme, dict[str, str]]:
    """The scheme of the weight that is called `key` now, and role -> key of its parts."""
    found = weight.scheme.carried_as(key, turned)
    if found is None:
        raise LayoutError(
            f"{weight.key} becomes {key}, for which {weight.scheme.name} has no names for codes and scales; {ADVICE}"
        )
    scheme, form = found
    stem = key.removesuffix(form.weight)
    return scheme, {role: stem + end for role, end in form.suffixes.items()}

"""Scales travel with weights: converting between layouts what stays quantised, codes and scales by the same rules.

The engine knows nothing of it. It converts the plain weights (whose graph tells which keys move, and what shapes they
get), then the codes, then each kind of companion under its weight's key. What cannot be said in the other layout is
refused: blocks that would straddle gate and up, packed columns that would have to be transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import LayoutError
from ..graph.building import many_nodes
from ..graph.rewrite import reshape
from ..layouts.choosing import Choice
from ..layouts.converting import convert
from ..layouts.keys import parse_key
from ..layouts.pattern import parse_axes
from ..layouts.rule import Layout, Rule
from ..tensor.lazy import LazyTensor
from . import registry
from .base import Settings, Weight

Tensors = Mapping[str, LazyTensor]
_ADVICE = "dequantise both first: --dtype bf16, lazysd.quantization.dequantize"


class Load:
    """The quantised weights among the tensors of a conversion."""

    def __init__(self, tensors: Tensors, weights: list[Weight], settings: Settings):
        self._tensors, self._settings = tensors, settings
        self._weights = {weight.key: weight for weight in weights}
        at = {weight.parts["codes"]: weight for weight in weights}
        parts = set(registry.parts_of(weights))
        self.plain: dict[str, Any] = {}  # key -> node, each quantised weight as the plain one it stands for
        for key, node in tensors.items():
            if key in at:
                self.plain[at[key].key] = registry.decode(at[key], tensors, "BF16", settings)
            elif key not in parts:
                self.plain[key] = node

    @many_nodes()
    def carried(self, made: dict[str, LazyTensor], choice: Choice) -> dict[str, LazyTensor]:
        """The converted tensors, what was quantised still quantised.

        Args:
            made: `plain`, converted.
            choice: from which layout to which, and by which sizes.

        Raises:
            LayoutError: with the reason why a weight cannot stay quantised.
        """
        if not self._weights:
            return made
        decoded = {id(self.plain[key]): weight for key, weight in self._weights.items()}
        moved = set(self._weights) - {decoded[id(node)].key for node in made.values() if id(node) in decoded}
        codes, companions = self._converted(moved, choice)
        result: dict[str, Any] = {}
        for key, node in made.items():
            if id(node) in decoded:  # the very same weight, perhaps under another name
                weight = decoded[id(node)]
                nodes = weight.nodes(self._tensors)
                result |= {
                    weight.parts[role] if key == weight.key else _name(key, role, weight): nodes[role] for role in nodes
                }
            elif key in codes:
                first, example = codes[key]
                also = {role: found[key] for role, found in companions.items() if key in found}
                parts = {"codes": first, **also}
                _check(key, example, parts, node, choice.target, choice.sizes, self._settings)
                result |= {_name(key, role, example): part for role, part in parts.items()}
            else:
                result[key] = node
        return result

    def _converted(
        self, moved: set[str], choice: Choice
    ) -> tuple[dict[str, tuple[Any, Weight]], dict[str, dict[str, Any]]]:
        """(key in the target -> codes and a weight of their scheme; role -> key in the target -> companion)."""
        weights = [weight for key, weight in self._weights.items() if key in moved]
        if not weights:
            return {}, {}
        for weight in weights:
            nodes = weight.nodes(self._tensors)
            _check(weight.key, weight, nodes, self.plain[weight.key], choice.origin, choice.sizes, self._settings)
        if len(kinds := {weight.scheme.name for weight in weights}) > 1:
            raise LayoutError(f"experts are quantised in several ways ({', '.join(sorted(kinds))}); {_ADVICE}")
        free = {axis: size for axis, size in choice.sizes.items() if axis[0] not in "hi"}  # packed, or in blocks

        def converted(parts: Tensors) -> dict[str, LazyTensor]:
            return convert(parts, choice.origin, choice.target, free, choice.firsts)

        first = weights[0]
        codes = converted({weight.key: self._tensors[weight.parts["codes"]] for weight in weights})
        self._refuse_turns(first, codes, choice)
        companions: dict[str, dict[str, Any]] = {}
        for role in dict.fromkeys(role for weight in weights for role in weight.parts if role != "codes"):
            made = converted({w.key: _as_matrix(w, role, self._tensors) for w in weights if role in w.parts})
            companions[role] = {key: _as_stored(node, codes[key], role, first) for key, node in made.items()}
        return {key: (node, first) for key, node in codes.items()}, companions

    def _refuse_turns(self, weight: Weight, made: Tensors, choice: Choice) -> None:
        """Refuse a target that transposes what has a meaning along columns only."""
        if weight.scheme.turns(weight.nodes(self._tensors), self._settings):
            return
        was = _turned(choice.origin, weight.key)
        if any(_turned(choice.target, key) != was for key in made):
            raise LayoutError(
                f"{weight.parts['codes']} and {weight.parts['scale']} would have to be transposed for layout "
                f"{choice.target.name!r}, which {weight.scheme.name} codes and scales cannot be; {_ADVICE}"
            )


def load(tensors: Tensors, config: Mapping[str, Any] | None) -> Load:
    """What is quantised among some tensors: nothing where what there is makes no whole weights."""
    settings = registry.settings_of(config)
    try:
        return Load(tensors, registry.find(tensors, settings), settings)
    except LayoutError:
        return Load(tensors, [], settings)  # the layouts refuse the parts, or carry them as tensors like others


def _name(key: str, role: str, weight: Weight) -> str:
    """The key of a part of the weight that is called `key` now."""
    form = next(form for form in weight.scheme.forms if key.endswith(form.weight))
    return key.removesuffix(form.weight) + form.suffixes[role]


def _as_matrix(weight: Weight, role: str, tensors: Tensors) -> LazyTensor:
    """A companion with as many axes as the codes: one number is one row and column."""
    codes, node = tensors[weight.parts["codes"]], tensors[weight.parts[role]]
    if node.ndim >= codes.ndim:
        return node
    if codes.ndim == 2:
        return reshape(node, (1, node.numel()))
    if node.numel() == 1:
        raise LayoutError(f"{weight.parts[role]} is one number for all experts of {weight.parts['codes']}; {_ADVICE}")
    return reshape(node, (*node.dims, *(1,) * (codes.ndim - node.ndim)))


def _as_stored(node: LazyTensor, codes: LazyTensor, role: str, weight: Weight) -> LazyTensor:
    """A converted companion in the shape that its scheme gives it."""
    if role not in weight.scheme.numbers:
        return reshape(node, (node.numel(),)) if role == "shape" and node.ndim == 2 else node
    if codes.ndim == 2:
        return reshape(node, weight.scheme.number_dims)
    return reshape(node, node.dims[:1] + tuple(size for size in node.dims[1:] if size != 1))


def _rule(layout: Layout, key: str) -> Rule | None:
    return next((rule for rule in layout.rules if not rule.rename and parse_key(rule.to).match(key)), None)


def _turned(layout: Layout, key: str) -> bool:
    """Whether a layout stores the columns of an expert's matrix before its rows."""
    rule = _rule(layout, key)
    if rule is None:
        return False
    left, right = parse_axes(rule.axes, rule.shared, rule.diagonal)
    row, column = (group[-1] for group in left.groups[-2:])
    where = {axis: place for place, group in enumerate(right.groups) for axis in group}
    return where[row] > where[column]


def _check(
    key: str,
    weight: Weight,
    parts: Mapping[str, Any],
    plain: LazyTensor,
    layout: Layout,
    sizes: Mapping[str, int],
    settings: Settings,
) -> None:
    """Refuse parts whose blocks a layout would cut, or mix. `plain` is the plain weight in the layout."""
    rule = _rule(layout, key)
    shown = weight.parts["scale"]
    cell = weight.scheme.cell(parts, settings)
    if cell is None:
        raise LayoutError(f"{shown}: {weight.scheme.name} stores a weight so that it cannot be split; {_ADVICE}")
    if rule is not None:
        left, right = parse_axes(rule.axes, rule.shared, rule.diagonal)
        moving = {group[-1] for group in left.groups[-2:]}
        words = parse_key(rule.hf).words
        for place, block in zip(range(len(right.groups) - 2, len(right.groups)), cell, strict=True):
            group = right.groups[place]
            inner = next((axis for axis in group if axis in moving), None)
            if inner is None or len(group) == 1 or block == 1:
                continue
            num = 1
            for axis in group:
                num *= 1 if axis == inner else len(words[axis]) if axis in words else sizes.get(axis, 0)
            if group[-1] != inner:
                raise LayoutError(
                    f"{shown}: layout {layout.name!r} interleaves {' and '.join(group)}, blocks of {block} cannot; "
                    f"{_ADVICE}"
                )
            if not num or (plain.dims[place] // num) % block:
                raise LayoutError(
                    f"{shown}: {num or 'several'} parts stand side by side in the {plain.dims[place]} of layout "
                    f"{layout.name!r}, and blocks of {block} would straddle them, no part being a multiple; {_ADVICE}"
                )
    try:
        dims = weight.scheme.dims(parts, settings)
    except ValueError as error:
        raise LayoutError(f"{shown}: {error}; {_ADVICE}") from error
    if dims != plain.dims:
        raise LayoutError(f"{shown}: codes and scales of {list(dims)} stand for {list(plain.dims)}; {_ADVICE}")

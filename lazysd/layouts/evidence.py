"""Keys and shapes as evidence of a layout: which rules speak of them, and whether sizes explain them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..tensor.lazy import LazyTensor
from .keys import KeyTemplate
from .rearrange import UnknownSizeError, solve
from .rule import Layout, Rule

_DIGITS = re.compile(r"[0-9]+")


@dataclass
class Evidence:
    """Keys and shapes, one for each kind of key: layers and experts differ in their numbers only."""

    tensors: Mapping[str, Any]
    kinds: dict[str, str] = field(init=False)  # the key with its numbers taken out -> the first such key

    def __post_init__(self) -> None:
        self.kinds = {}
        for key in self.tensors:
            self.kinds.setdefault(_DIGITS.sub("0", key), key)
        self._seen: dict[str, str | None] = {}

    def first(self, template: KeyTemplate) -> str | None:
        """A key of a template."""
        if template.text not in self._seen:
            self._seen[template.text] = next(
                (key for key in self.kinds.values() if template.match(key) is not None), None
            )
        return self._seen[template.text]

    def matched(self, templates: Iterable[KeyTemplate]) -> dict[str, str]:
        """Templates that some key is of, with the first such key. `{prefix}` gives way to a prefix spelt out."""
        found: dict[str, str] = {}
        spelt: set[str] = set()
        for template in sorted(templates, key=lambda template: "prefix" in template.fields):
            keys = [key for key in self.kinds.values() if key not in spelt and template.match(key) is not None]
            if keys:
                found[template.text] = keys[0]
            if "prefix" not in template.fields:
                spelt.update(keys)
        return found

    def used(self, layout: Layout) -> list[tuple[Rule, str]]:
        """The rules of a layout that speak of some key, with the first such key."""
        found = []
        for rule in layout.rules:
            key = self.first(rule.ends(False).template)
            if key is not None:
                found.append((rule, key))
        return found

    def holds(self, layout: Layout) -> bool:
        """Whether some key is of the layout; names of bystanders prove nothing."""
        return any(self.first(template) is not None for template in layout.own_keys)

    def fits(self, layout: Layout, sizes: Mapping[str, int]) -> str | None:
        """None where one size of each axis explains every shape, else what does not fit."""
        known = {axis: size for axis, size in sizes.items() if axis != "e"}
        for rule, key in self.used(layout):
            node = self.tensors[key]
            end = rule.ends(False)
            if not isinstance(node, LazyTensor) or end.side.parts or rule.rename:
                continue
            words = {axis: len(end.target.words[axis]) for axis in end.target_side.keys if axis in end.target.words}
            counted = {"e": sizes["e"]} if "e" in sizes else {}
            try:
                solved = solve(end.side, node.dims, {**known, **counted, **words})
            except UnknownSizeError:
                continue
            except ValueError as error:
                return f"{key}: {error}"
            known |= {axis: size for axis, size in solved.items() if axis in layout.sizes}
        return None

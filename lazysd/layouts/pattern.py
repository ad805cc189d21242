"""Patterns as text become plain data: key templates (regexes and their inverse) and axis patterns (einops notation)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod

from ..graph.ops import Permute, Reshape, Slice, Stack
from ..graph.rewrite import build
from ..tensor.lazy import LazyTensor

_FIELD = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


@dataclass(frozen=True)
class KeyTemplate:
    """A family of keys: literal text with fields.

    `{prefix}` is any run of dotted names, or nothing; `{name}` is a number; `{name:a|b}` is one of the words given, and
    counts as 0, 1, … in that order. Example: "{prefix}layers.{layer}.mlp.experts.{e}.{g:gate_proj|up_proj}.weight".
    """

    text: str
    fields: tuple[str, ...]
    words: dict[str, tuple[str, ...]]
    regex: re.Pattern[str]
    literal: str  # the longest literal part: a quick test before the regex

    def match(self, key: str) -> dict[str, str] | None:
        """The fields of a key, None where the key is not of this family."""
        if self.literal not in key:
            return None
        found = self.regex.fullmatch(key)
        return found.groupdict() if found else None

    def format(self, fields: dict[str, str]) -> str:
        """The key with these fields."""
        return _FIELD.sub(lambda field: fields[field[1]], self.text)

    def word(self, name: str, number: int) -> str:
        """How index `number` along key axis `name` is written."""
        return self.words[name][number] if name in self.words else str(number)

    def number(self, name: str, word: str) -> int:
        """The index along key axis `name` that a word stands for."""
        return self.words[name].index(word) if name in self.words else int(word)

    def neighbourhood(self, key_axes: tuple[str, ...]) -> tuple[str, re.Pattern[str]]:
        """Keys that a reader would expect this template to cover: the same up to its first key axis or last name.

        Returns the longest literal that all of them hold, for a quick test, and the regex.
        """
        cut = min((at for axis in key_axes if (at := self.text.find("{" + axis)) >= 0), default=len(self.text))
        head = self.text[: self.text.rfind(".", 0, cut) + 1]
        return max(_FIELD.sub("\0", head).split("\0"), key=len), _compile(head, open_end=True)


@cache
def parse_key(text: str) -> KeyTemplate:
    """Read a key template. Raises ValueError on stray braces or a field named twice."""
    fields = [field[1] for field in _FIELD.finditer(text)]
    if len(set(fields)) != len(fields):
        raise ValueError(f"key template {text!r} names a field twice")
    parts = _FIELD.sub("\0", text).split("\0")
    if any(brace in part for part in parts for brace in "{}"):
        raise ValueError(f"key template {text!r} has a brace that is no field; write {{name}} or {{name:a|b}}")
    words = {field[1]: tuple(field[2].split("|")) for field in _FIELD.finditer(text) if field[2]}
    return KeyTemplate(text, tuple(fields), words, _compile(text), max(parts, key=len))


def _compile(text: str, open_end: bool = False) -> re.Pattern[str]:
    regex, at = "", 0
    for field in _FIELD.finditer(text):
        name, words = field[1], field[2]
        body = r"(?:.*\.)?" if name == "prefix" else r"0|[1-9]\d*"
        if words:
            body = "|".join(re.escape(word) for word in words.split("|"))
        regex += re.escape(text[at : field.start()]) + f"(?P<{name}>{body})"
        at = field.end()
    return re.compile(regex + re.escape(text[at:]) + (".*" if open_end else ""), re.DOTALL)


@dataclass(frozen=True)
class Side:
    """One side of an axis pattern."""

    keys: tuple[str, ...]  # axes that live in key names, in brackets
    groups: tuple[tuple[str, ...], ...]  # one group of axes for each axis of the tensor

    @property
    def axes(self) -> tuple[str, ...]:
        """Every axis, key axes first, then the tensor's, unfolded."""
        return self.keys + tuple(axis for group in self.groups for axis in group)

    def without(self, key_axis: str) -> Side:
        """The same side lacking a key axis."""
        return Side(tuple(axis for axis in self.keys if axis != key_axis), self.groups)

    def __str__(self) -> str:
        shown = [group[0] if len(group) == 1 else f"({' '.join(group)})" for group in self.groups]
        return " ".join(([f"[{' '.join(self.keys)}]"] if self.keys else []) + shown)


@cache
def parse_axes(text: str, shared: str | None = None, diagonal: str | None = None) -> tuple[Side, Side]:
    """Read "[e g] i h -> e h (g i)": both sides of a bijection between axes. Raises ValueError saying what is wrong.

    `shared` is an axis that only the right side has; `diagonal` one that the left side has twice, the second time
    renamed to `g'` (see Rule).
    """
    sides = text.split("->")
    if len(sides) != 2:
        raise ValueError(f"axis pattern {text!r} needs exactly one '->'")
    left, right = (_parse_side(side, text) for side in sides)
    if diagonal is not None:
        left = _second_renamed(left, diagonal, text)
    for side in (left, right):
        repeated = {axis for axis in side.axes if side.axes.count(axis) > 1}
        if repeated:
            raise ValueError(f"axis pattern {text!r} repeats {sorted(repeated)} on one side, so it is no bijection")
    alone = {axis for axis in (shared, diagonal and diagonal + "'") if axis}
    if set(left.axes) ^ set(right.axes) != alone or (shared is not None and shared not in right.keys):
        raise ValueError(f"axis pattern {text!r}: {sorted(set(left.axes) ^ set(right.axes))} stand on one side only")
    return left, right


def _second_renamed(side: Side, axis: str, text: str) -> Side:
    if side.axes.count(axis) != 2:
        raise ValueError(f"axis pattern {text!r}: the diagonal axis {axis} has to stand twice on the left")
    seen = 0
    groups = []
    for group in side.groups:
        seen += group.count(axis)
        groups.append(tuple(axis + "'" if name == axis and seen == 2 else name for name in group))
    return Side(side.keys, tuple(groups))


def _parse_side(side: str, text: str) -> Side:
    keys: tuple[str, ...] = ()
    groups: list[tuple[str, ...]] = []
    tokens = re.findall(r"\[[^\[\]()]*\]|\([^\[\]()]*\)|\w+|\S", side)
    for number, token in enumerate(tokens):
        if token[0] == "[" and number == 0 and len(token) > 2:
            keys = tuple(token[1:-1].split())
        elif token[0] == "(" and len(token) > 2:
            groups.append(tuple(token[1:-1].split()))
        elif token.isidentifier():
            groups.append((token,))
        else:
            raise ValueError(
                f"axis pattern {text!r}: cannot read {token!r}; brackets [..] come first and hold key axes"
            )
    return Side(keys, tuple(groups))


def rearrange(
    inputs: tuple[LazyTensor, ...], source: Side, target: Side, sizes: dict[str, int]
) -> tuple[list[LazyTensor], dict[str, int]]:
    """Nodes of one side (row-major over its key axes) to nodes of the other side, and the sizes of all axes.

    `sizes` holds the key axes of `source` and whatever else is known by name. At most one size of each folded axis is
    computed from the tensor's shape. Raises ValueError with both sides where the shapes do not fit.
    """
    sizes = dict(sizes)
    dims = inputs[0].dims
    if len(dims) != len(source.groups):
        raise ValueError(f"pattern '{source}' has {len(source.groups)} tensor axes, the tensor is {list(dims)}")
    for group, size in zip(source.groups, dims, strict=True):
        unknown = [axis for axis in group if axis not in sizes or (len(group) == 1)]
        known = prod(sizes[axis] for axis in group if axis not in unknown)
        if len(unknown) > 1:
            raise ValueError(f"axis ({' '.join(group)}) of size {size}: the sizes of {unknown} are not known")
        if known * (size // known if unknown and known else 1) != size:
            shown = " x ".join(f"{axis}={sizes.get(axis, '?')}" for axis in group)
            raise ValueError(f"axis ({' '.join(group)}) has size {size}, which is not {shown}")
        if unknown:
            (axis,) = unknown
            if sizes.get(axis, size // known) != size // known:
                raise ValueError(f"axis {axis} has size {size // known}, expected {sizes[axis]}")
            sizes[axis] = size // known
    lead = tuple(sizes[axis] for axis in source.keys)
    node = build(Stack(lead), inputs) if source.keys else inputs[0]
    node = build(Reshape(tuple(sizes[axis] for axis in source.axes)), (node,))
    node = build(Permute(tuple(source.axes.index(axis) for axis in target.axes)), (node,))
    n = len(target.keys)
    shape = tuple(sizes[axis] for axis in target.keys) + tuple(
        prod(sizes[axis] for axis in group) for group in target.groups
    )
    node = build(Reshape(shape), (node,))
    if not n:
        return [node], sizes
    whole = tuple(range(size) for size in shape[n:])
    picks = product(*(range(size) for size in shape[:n]))
    drop = tuple(range(n))
    return [build(Slice((*(range(k, k + 1) for k in pick), *whole), drop), (node,)) for pick in picks], sizes

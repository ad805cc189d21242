"""Axis patterns (einops notation) as plain data: which axes live in keys, and which groups the tensor's axes fold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

REST = "..."  # any run of axes, carried as it is
_TOKEN = re.compile(r"\.\.\.|\w+|\S")
_BRACKETS = "brackets [..] come first and hold key axes"


@dataclass(frozen=True)
class Side:
    """One side of an axis pattern.

    An axis is a name, a literal size such as "1", or parts "q+k+v": the sizes of several tensors end to end, of which
    the side that has a key axis for them holds one each.
    """

    keys: tuple[str, ...]  # axes that live in key names, in brackets
    groups: tuple[tuple[str, ...], ...]  # one group of axes for each axis of the tensor
    # Of one group, (n a b)|(n b a): how the tensor of each word of the key axis folds it; `groups` has the first.
    orders: tuple[tuple[str, ...], ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """Every axis, key axes first, then the tensor's, unfolded."""
        return self.keys + tuple(axis for group in self.groups for axis in group)

    @property
    def parts(self) -> str | None:
        """The axis of unequal parts, where there is one."""
        return next((axis for group in self.groups for axis in group if "+" in axis), None)

    def without(self, key_axis: str) -> Side:
        """The same side lacking a key axis."""
        return replace(self, keys=tuple(axis for axis in self.keys if axis != key_axis))

    def of_rank(self, rank: int) -> Side:
        """With `...` spelt out for tensors of this rank, as axes "...0", "...1", …; itself where there is none.

        Raises ValueError where the tensor has fewer axes than are named.
        """
        if (REST,) not in self.groups:
            return self
        at, count = self.groups.index((REST,)), rank - len(self.groups) + 1
        if count < 0:
            raise ValueError(f"pattern '{self}' names {len(self.groups) - 1} tensor axes, the tensor has {rank}")
        rest = tuple((f"{REST}{number}",) for number in range(count))
        return replace(self, groups=(*self.groups[:at], *rest, *self.groups[at + 1 :]))

    @property
    def alone(self) -> tuple[Side, ...]:
        """The side of the tensor of each word, where they fold an axis each in its own order; else nothing."""
        if not self.orders:
            return ()
        at = self.groups.index(self.orders[0])
        return tuple(Side((), (*self.groups[:at], order, *self.groups[at + 1 :])) for order in self.orders)

    def __str__(self) -> str:
        def name(axis: str) -> str:
            return axis if "+" not in axis else axis.replace("+", "|") if self.keys else f"({axis.replace('+', ' + ')})"

        def folded(group: tuple[str, ...]) -> str:
            orders = self.orders if group in self.orders[:1] else (group,)
            return "|".join(f"({' '.join(map(name, order))})" for order in orders)

        shown = [name(group[0]) if len(group) == 1 else folded(group) for group in self.groups]
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
    left, right = (parse_side(side, text) for side in sides)
    if diagonal is not None:
        left = _second_renamed(left, diagonal, text)
    for side in (left, right):
        repeated = {axis for axis in side.axes if side.axes.count(axis) > 1 and axis != "1"}
        if repeated:
            raise ValueError(f"axis pattern {text!r} repeats {sorted(repeated)} on one side, so it is no bijection")
        if "1" in side.keys or any(REST in group and len(group) > 1 for group in (side.keys, *side.groups)):
            raise ValueError(f"axis pattern {text!r}: '...' and literal sizes stand outside of brackets and folds")
    alone = {axis for axis in (shared, diagonal and diagonal + "'") if axis}
    for side in (left, right):
        _check_orders(side, text)
    if (left.parts or right.parts) and left != right:
        alone.add(_key_of_parts(left, right, text))
    odd = (set(left.axes) ^ set(right.axes)) - {"1"}
    if odd != alone or (shared is not None and shared not in right.keys):
        raise ValueError(f"axis pattern {text!r}: {sorted(odd)} stand on one side only")
    return left, right


def _check_orders(side: Side, text: str) -> None:
    """Each word's order folds the same axes, and one key axis says which word a tensor is of."""
    if any(sorted(order) != sorted(side.orders[0]) for order in side.orders) or (side.orders and len(side.keys) != 1):
        raise ValueError(
            f"axis pattern {text!r}: orders are written [c] (a b)|(b a), of the same axes each, on a side with one key "
            "axis that has a word for each of them"
        )


def _key_of_parts(left: Side, right: Side, text: str) -> str:
    """The key axis that tells unequal parts apart: the only axis that one side has and the other lacks."""
    odd = set(left.axes) ^ set(right.axes)
    side = left if odd <= set(left.keys) else right
    if left.parts != right.parts or len(odd) != 1 or not odd <= set(side.keys) or len(side.keys) != 1:
        raise ValueError(
            f"axis pattern {text!r}: parts are written [p] q|k|v on the side whose keys name them and (q + k + v) on "
            "the other, in the same order"
        )
    return next(iter(odd))


def _second_renamed(side: Side, axis: str, text: str) -> Side:
    if side.axes.count(axis) != 2:
        raise ValueError(f"axis pattern {text!r}: the diagonal axis {axis} has to stand twice on the left")
    seen = 0
    groups = []
    for group in side.groups:
        seen += group.count(axis)
        groups.append(tuple(axis + "'" if name == axis and seen == 2 else name for name in group))
    return replace(side, groups=tuple(groups))


@cache
def parse_side(side: str, text: str = "") -> Side:
    """Read one side, "[e g] i h"; `text` is the whole pattern, for messages."""
    tokens: list[str] = _TOKEN.findall(side)

    def wrong(token: str) -> ValueError:
        return ValueError(f"axis pattern {text or side!r}: cannot read {token!r}; {_BRACKETS}")

    keys: tuple[str, ...] = ()
    if tokens[:1] == ["["]:
        end = tokens.index("]") if "]" in tokens else 0
        keys = tuple(tokens[1:end])
        if not keys or not all(axis.isidentifier() for axis in keys):
            raise wrong("[" + " ".join(tokens[1 : end + 1]))
        tokens = tokens[end + 1 :]
    groups: list[tuple[str, ...]] = []
    orders: list[tuple[str, ...]] = []
    todo = iter(tokens)
    for token in todo:
        if token == "(":
            groups.append(_folded(todo, wrong))
        elif token == "|" and groups:
            word = next(todo, "")
            if word == "(" and len(groups[-1]) > 1 and orders[:1] in ([], [groups[-1]]):
                orders = [*(orders or [groups[-1]]), _folded(todo, wrong)]
            else:
                groups[-1] = (*groups[-1][:-1], f"{groups[-1][-1]}+{word}")
        elif _is_axis(token) or token == REST:
            groups.append((token,))
        else:
            raise wrong(token)
    if not all(_is_axis(part) or part == REST for group in groups for axis in group for part in axis.split("+")):
        raise wrong("|")
    return Side(keys, tuple(groups), tuple(orders))


def _folded(todo: Iterator[str], wrong: object) -> tuple[str, ...]:
    """What parentheses hold, after the opening one: axes to fold, or a sum of parts, itself in parentheses within."""
    group: list[str] = []
    inner = joins = False
    for token in todo:
        if token == ")":
            if inner:
                inner = False
                continue
            if group and not joins:
                return tuple(group)
            break
        if token == "(" and not inner:
            inner = True
            group.append("")
        elif token in ("+", "|") and group and group[-1]:
            joins = True
        elif _is_axis(token) and (joins or (inner and not group[-1])):
            group[-1] += ("+" if joins else "") + token
            joins = False
        elif _is_axis(token) and not inner:
            group.append(token)
        else:
            break
    raise wrong("(" + " ".join(group))  # type: ignore[operator]


def _is_axis(token: str) -> bool:
    return token.isidentifier() or (token.isascii() and token.isdecimal() and token.lstrip("0") == token)

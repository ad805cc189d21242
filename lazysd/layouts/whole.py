"""Whether every layer has what others have: gate and up without down is half a layer, and nothing is made of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import MissingExpertsError
from .keys import parse_key
from .rule import End

_PROJECTION = re.compile(r"\{\w+\}\.(\{\w+:[^}]*\}|\w+)\.(weight|bias)$")  # of one expert, in the hub's keys
_STACK = re.compile(r"\b[ez]([0-9]*)[du]?\b")  # which of several lists of experts an axis counts
Fixed = tuple[tuple[str, str], ...]  # the fields that all keys of a group share: prefix, layer


def check_layers(ends: Sequence[End], groups: Iterable[tuple[int, Fixed]]) -> None:
    """Raise MissingExpertsError where layers of a stack of experts differ in the weights or biases they have.

    What only belongs to a weight, such as a scale, may stand in some layers only. A kind of tensor that no layer has is
    no fault: parts of a checkpoint convert too.
    """
    places: dict[int, set[Fixed]] = {}
    for number, fixed in groups:
        if is_of_experts(ends[number]):
            places.setdefault(number, set()).add(fixed)
    stacks: dict[tuple[str, ...], list[int]] = {}
    for number in places:
        stacks.setdefault(stack_of(ends[number]), []).append(number)
    for numbers in stacks.values():
        everywhere = set().union(*(places[number] for number in numbers))
        for number in numbers:
            if missing := everywhere - places[number]:
                _refuse(ends, number, min(missing), numbers, places)


def is_of_experts(end: End) -> bool:
    """Whether a rule is of weights or biases; what only belongs to a weight, such as a scale, may be anywhere."""
    return not end.rule.rename and _PROJECTION.search(end.rule.hf) is not None


def stack_of(end: End) -> tuple[str, ...]:
    """What the rules of one stack of experts have in common: the layer's key in the hub, and which list it is."""
    template, side = parse_key(end.rule.hf), end.rule.ends(True).side
    last = max(
        (n for n, t in enumerate(template.tokens) if t.kind != "literal" and t.text not in side.keys), default=-1
    )
    head = "".join(token.loose for token in template.tokens[: last + 1])
    found = _STACK.search(end.rule.axes)
    return head, found[1] if found else "", str(template.shifts)


def _refuse(
    ends: Sequence[End], number: int, fixed: Fixed, numbers: Iterable[int], places: Mapping[int, set[Fixed]]
) -> None:
    def shown(number: int) -> str:
        return ends[number].template.format(
            {**{name: f"{{{name}}}" for name in ends[number].template.fields}, **dict(fixed)}
        )

    there = next(other for other in numbers if fixed in places[other])
    raise MissingExpertsError(
        f"missing: {shown(number)}, though {shown(there)} is there and other layers have both; is a shard incomplete?"
    )

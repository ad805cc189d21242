"""Random rules: any bijection between named axes, in keys and in tensors, folded as it may be, against eager torch."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lazysd
from lazysd.layouts import Layout, Rule, convert, get
from lazysd.layouts.pattern import parse_axes

AXES = "abcdf"  # "e" would be counted by config.json in other layouts; here nothing counts
WORDS = ("zero", "one", "two", "three")


class Written(NamedTuple):
    """One side of a rule, and the tensors that stand there."""

    template: str
    pattern: str
    tensors: dict[str, torch.Tensor]


@st.composite
def sides(draw: Any, whole: torch.Tensor, axes: str, worded: str, name: str) -> Written:
    """The elements of `whole`, one axis a letter, written under some keys with some axes in some order and folds."""
    order = draw(st.permutations(axes))
    num_keys = draw(st.integers(0, len(order)))
    keys, rest = order[:num_keys], order[num_keys:]
    groups: list[str] = []
    for axis in rest:
        if groups and draw(st.booleans()):
            groups[-1] += axis
        else:
            groups.append(axis)
    fields = []
    for axis in keys:
        words = "|".join(WORDS[: whole.shape[axes.index(axis)]])
        fields.append("{" + axis + (":" + words if axis in worded else "") + "}")
    template = "{prefix}block.{layer}." + ".".join([*fields, name])
    pattern = " ".join(
        ([f"[{' '.join(keys)}]"] if keys else [])
        + [group if len(group) == 1 else f"({' '.join(group)})" for group in groups]
    )
    sizes = {axis: whole.shape[axes.index(axis)] for axis in axes}
    turned = whole.permute([axes.index(axis) for axis in order])
    tensors = {}
    for index in product(*(range(sizes[axis]) for axis in keys)):
        shown = [WORDS[at] if axis in worded else str(at) for axis, at in zip(keys, index, strict=True)]
        key = "model.block.7." + ".".join([*shown, name])
        tensors[key] = turned[index].reshape([prod(sizes[axis] for axis in group) for group in groups])
    return Written(template, pattern, tensors)


@st.composite
def cases(draw: Any) -> tuple[Written, Written, dict[str, int]]:
    axes = AXES[: draw(st.integers(1, len(AXES)))]
    dims = [draw(st.integers(1, 4)) for _ in axes]
    worded = "".join(axis for axis in axes if draw(st.booleans()))
    whole = torch.arange(prod(dims), dtype=torch.int32).view(dims)
    left = draw(sides(whole, axes, worded, "left"))
    right = draw(sides(whole, axes, worded, "right"))
    return left, right, dict(zip(axes, dims, strict=True))


@given(cases())
@settings(max_examples=300)
def test_any_rule_both_ways(case: tuple[Written, Written, dict[str, int]]) -> None:
    left, right, sizes = case
    rule = Rule(left.template, right.template, f"{left.pattern} -> {right.pattern}")
    layout = Layout("drawn", "any", (rule,))
    hub = Layout("hub", "any", (Rule(left.template, left.template, f"{left.pattern} -> {left.pattern}"),))
    for source, target, origin, goal in ((left, right, hub, layout), (right, left, layout, hub)):
        lazies = {key: lazysd.from_torch(tensor) for key, tensor in source.tensors.items()}
        found = convert(lazies, origin, goal, sizes)
        assert set(found) == set(target.tensors)
        for key, expected in target.tensors.items():
            assert found[key].dims == tuple(expected.shape)
            assert torch.equal(found[key].materialize(), expected)
        back = convert(found, goal, origin, sizes)
        assert all(back[key].materialize().equal(tensor) for key, tensor in source.tensors.items())


def test_a_rule_pinned() -> None:
    """The fold-rank of a PEFT lora_B and a grouped gate|up, spelt out."""
    assert str(parse_axes("e h r -> h (r e)")[1]) == "h (r e)"
    rule = Rule("{e}.{g:gate|up}", "both", "[e g] i h -> e h (g i)")
    whole = torch.arange(2 * 2 * 3 * 4).view(2, 2, 3, 4)
    hub = {f"{e}.{name}": lazysd.from_torch(whole[e, g]) for e in range(2) for g, name in enumerate(("gate", "up"))}
    found = convert(hub, Layout("hub", "f"), Layout("mine", "f", (rule,)), {})
    expected = torch.stack([torch.cat([whole[e, 0].T, whole[e, 1].T], dim=1) for e in range(2)])
    assert torch.equal(found["both"].materialize(), expected)
    assert get("nemo", "qwen3_moe").rules[0].axes == rule.axes

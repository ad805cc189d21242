"""Tensors of words that fold an axis in orders of their own, and numbers that differ between the two keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoints import assert_same
from hypothesis import given
from hypothesis import strategies as st

import lazysd
from lazysd.errors import LayoutError
from lazysd.layouts import Layout, Rule, parse_axes, parse_key
from lazysd.layouts.converting import from_hub, to_hub

AXES = "(c n d 2) h -> [c] (n 2 d)|(n 2 d)|(n d 2) h"


def moved(layout: Layout, tensors: dict[str, torch.Tensor], forward: bool, **sizes: int) -> dict[str, torch.Tensor]:
    lazy = {key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}
    made: Any = (from_hub if forward else to_hub)(lazy, layout, sizes)
    return {key: node.materialize() for key, node in made.items()}


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 11))
def test_each_word_has_its_own_order(heads: int, half: int, width: int) -> None:
    """Rotary pairs of q and k become halves, v stays: plain torch is the oracle, and back are the same bits."""
    rule = Rule("{layer}.wqkv", "{layer}.{c:q|k|v}", AXES, rename=True)
    qkv = torch.randn(3 * heads * half * 2, width)
    q, k, v = qkv.chunk(3)
    turned = [x.view(heads, half, 2, width).transpose(1, 2).reshape(-1, width) for x in (q, k)]
    expected = {"10.q": turned[0], "10.k": turned[1], "10.v": v.contiguous()}
    layout = Layout("x", "f", (rule,))
    found = moved(layout, {"10.wqkv": qkv}, True, n=heads)
    assert_same(found, expected)
    assert_same(moved(layout, found, False, n=heads), {"10.wqkv": qkv})


def test_the_pattern_reads_as_it_was_written() -> None:
    left, right = parse_axes(AXES)
    assert f"{left} -> {right}" == AXES
    assert parse_axes(f"{left} -> {right}") == (left, right)


@pytest.mark.parametrize(
    ("hf", "to", "axes", "reason"),
    [
        ("x", "{c:q|k}", "(c n d) -> [c] (n d)|(n n)", "of the same axes each"),
        ("x", "{c:q|k|v}", "(c n d) -> [c] (n d)|(d n)", "one word of c for each order"),
        ("x", "{c:q|k}.{e}", "(e c n d) -> [e c] (n d)|(d n)", "one key axis"),
        ("{e}.x", "{e:+1}.y", "[e] h -> [e] h", "takes no shift"),
        ("{a}.x", "{a:+1000}.y", "... -> ...", "a has|words|should|no name|differ"),
    ],
)
def test_what_cannot_be_meant(hf: str, to: str, axes: str, reason: str) -> None:
    with pytest.raises(LayoutError, match=reason):
        Rule(hf, to, axes)


def test_a_number_that_is_one_more_there() -> None:
    rule = Rule("queries.{layer}", "layers.{layer:+1}.query", rename=True)
    layout = Layout("x", "f", (rule,))
    tensors = {f"queries.{number}": torch.full((2,), float(number)) for number in range(12)}
    found = moved(layout, tensors, True)
    assert_same(found, {f"layers.{number + 1}.query": torch.full((2,), float(number)) for number in range(12)})
    assert_same(moved(layout, found, False), tensors)
    assert parse_key("layers.{layer:+1}.query").match("layers.0.query") is None  # it would be number -1


@given(st.integers(0, 999_999))
def test_a_shifted_key_comes_back_as_it_was(number: int) -> None:
    template = parse_key("a.{n:+3}.b")
    key = template.format({"n": str(number)})
    assert key == f"a.{number + 3}.b"
    assert template.match(key) == {"n": str(number)}


@pytest.mark.parametrize("shift", [1, 2, 9, 10, 19, 61, 99, 100, 199, 909])
def test_a_shift_is_where_numbers_start(shift: int) -> None:
    template = parse_key(f"a.{{n:+{shift}}}.b")
    for number in (*range(1200), 99_999, 10**8, 10**9 - 1):
        assert template.match(f"a.{number}.b") == ({"n": str(number - shift)} if number >= shift else None)
    assert template.match(f"a.0{shift}.b") is None
    assert template.match(f"a.{10**9}.b") is None

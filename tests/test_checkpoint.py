"""Views: what a checkpoint states goes along whole, and functions are called as they want to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lazysd
from lazysd import Checkpoint
from lazysd.facts import Facts

VIEWS: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "select": lambda ckpt: ckpt.select("*"),
    "drop": lambda ckpt: ckpt.drop("*norm*"),
    "rename": lambda ckpt: ckpt.rename(lambda key: "x." + key),
    "map": lambda ckpt: ckpt.map(lambda t: t.to(torch.float64)),
    "or": lambda ckpt: ckpt | {"more": torch.ones(2)},
    "or a checkpoint": lambda ckpt: ckpt | Checkpoint({"more": lazysd.from_torch(torch.ones(2))}),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_carry_every_fact(view: str, golden: Path) -> None:
    stated = lazysd.open(golden / "peft_paramwrapper_r3")
    ckpt = Checkpoint(
        stated, stated.facts, layout="peft-0.19", family="qwen3_moe", config={"num_experts": 6}, remarks=("a",)
    )
    made = VIEWS[view](ckpt)
    assert made.facts == ckpt.facts
    assert (made.layout, made.family, made.adapter) == ("peft-0.19", "qwen3_moe", stated.adapter)
    assert all(value is not None for value in vars(ckpt.facts).values()), "a fact that is not set tests nothing"


def test_a_union_of_two_layouts_states_none() -> None:
    one, other = (
        Facts(layout="hf", family="qwen3_moe", files=(1,)),
        Facts(layout="nemo", family="qwen3_moe", files=(2,)),
    )
    both = one.joined(other)
    assert (both.layout, both.family, both.files) == (None, "qwen3_moe", (1, 2))
    assert one.joined(Facts()).layout == "hf"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (torch.neg, -2.0),
        (lambda t, d=torch.float16: t.to(d), 2.0),
        (lambda key, t: t * len(key), 8.0),
        (lambda key: key * 3, 12.0),  # named key and called with one argument only where with_key says so
    ],
)
def test_map_calls_a_function_as_it_wants(function: Any, expected: float) -> None:
    ckpt = Checkpoint({"four": lazysd.from_torch(torch.full((1,), 2.0))})
    if expected == 12.0:
        with pytest.raises(TypeError):
            ckpt.map(function)
        expected, made = 6.0, ckpt.map(function, with_key=False)
    else:
        made = ckpt.map(function)
    assert made["four"].materialize().item() == expected


def test_map_says_how_to_ask_for_keys() -> None:
    ckpt = Checkpoint({"a": lazysd.from_torch(torch.ones(1))})
    with pytest.raises(TypeError, match="name its first parameter 'key', or say with_key=True"):
        ckpt.map(lambda name, t: t)
    assert ckpt.map(lambda name, t: t, with_key=True)["a"] is ckpt["a"]

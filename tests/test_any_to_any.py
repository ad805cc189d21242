"""Every pair of layouts of every family: straight there is what the way over hf gives, and back are the very leaves."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from checkpoints import assert_same
from hypothesis import HealthCheck, Phase, given, settings

import lazysd
from lazysd.layouts import Layout, registry
from lazysd.testing import state_dicts
from lazysd.testing.strategies import PREFIXES

FAMILIES = sorted(registry.families())


def layouts_of(family: str) -> list[Layout]:
    """Those of weights; LoRA has its own tests."""
    return [layout for layout in registry.layouts_of(family) if not layout.name.startswith("peft")]


def drawn(family: str, prefix: str) -> Any:
    """A state dict of the family, ten and more experts in each of two layers. Drawn once: shrinking takes long."""
    sizes = {"e": 11}
    strategy = state_dicts(
        family, "hf", dtypes=[torch.float32], prefixes=(prefix,), sizes=sizes, max_layers=2, scenery=False
    )
    found: list[Any] = []

    @given(strategy)
    @settings(max_examples=8, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def draw(state: Any) -> None:
        found.append(state)

    draw()
    return max(found, key=lambda state: len({*state.sizes.values()}))


def prefix_of(family: str, otherwise: str) -> str:
    """What stands before `layers` in the hub's keys, where a table spells it out; else `otherwise`."""
    rules = [rule.hf for layout in layouts_of(family) for rule in layout.rules if not rule.rename]
    spelt = next((hf for hf in rules if "{prefix}" not in hf), None)
    return otherwise if spelt is None else "" if spelt.startswith("layers.") else "model."


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair(family: str) -> None:
    layouts = layouts_of(family)
    state = drawn(family, prefix_of(family, PREFIXES[2]))
    ckpt = lazysd.Checkpoint(
        {key: lazysd.from_torch(tensor) for key, tensor in state.items()},
        config=state.config,
        family=family,
        layout="hf",
    )
    made = {layout.name: ckpt.convert(layout.name) for layout in layouts}
    for one, other in permutations(made, 2):
        straight = made[one].convert(other)
        assert list(straight) == list(made[other]) or set(straight) == set(made[other]), (one, other)
        assert_same(straight, made[other])
        back = straight.convert("hf")
        assert all(back[key] is ckpt[key] for key in ckpt), (one, other)

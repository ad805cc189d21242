"""Every pair of layouts of every family: straight there is what the way over hf gives, and back are the very leaves."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Any

import pytest
import torch
from checkpoints import assert_same
from hypothesis import HealthCheck, find, settings

import lazysd
from lazysd.layouts import Layout, registry
from lazysd.testing import state_dicts
from lazysd.testing.strategies import PREFIXES

FAMILIES = sorted(registry.families())


def layouts_of(family: str) -> list[Layout]:
    """Those of weights; LoRA has its own tests."""
    return [layout for layout in registry.layouts_of(family) if not layout.name.startswith("peft")]


@cache
def drawn(family: str, prefix: str) -> Any:
    """A state dict of the family, ten and more experts among two layers."""
    strategy = state_dicts(family, "hf", dtypes=[torch.float32], prefixes=(prefix,), max_layers=2, scenery=False)
    quick = settings(max_examples=200, database=None, suppress_health_check=list(HealthCheck))

    def is_large(state: Any) -> bool:
        return state.sizes.get("e", 10) >= 10 and len({*state.sizes.values()}) > 2

    return find(strategy, is_large, settings=quick)


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


def convert(state: dict[str, torch.Tensor], to: str, family: str, config: dict[str, Any]) -> list[str]:
    return list(lazysd.convert(state, to, "hf", family, config))


@pytest.mark.parametrize("family", FAMILIES)
def test_faults_are_refused(family: str) -> None:
    """An expert's tensor missing, one too many, one of another shape or dtype: never converted."""
    state = drawn(family, prefix_of(family, "model."))
    key = next((key for key in state if ".experts.9." in key), None)
    if key is None:
        pytest.skip("experts are stacked on disk: none is missing, extra or doubled")
    other = state[key].new_zeros([size + 1 for size in state[key].shape])
    extra = key.replace("experts.9.", "experts.9000.")
    odd = key.replace("experts.", "experts.0")
    for name, broken in {
        "missing": {k: v for k, v in state.items() if k != key},
        "extra": {**state, extra: state[key]},
        "spelt otherwise": {**state, odd: state[key]},
        "another shape": {**state, key: other},
        "another dtype": {**state, key: state[key].to(torch.float16)},
        "a stranger": {**state, key.rsplit(".", 1)[0] + ".zero_point": state[key]},
    }.items():
        for layout in layouts_of(family):
            with pytest.raises(lazysd.errors.LayoutError):
                pytest.fail(f"{name}: converted to {layout.name}: {convert(broken, layout.name, family, state.config)}")

"""Every registered layout is tried, so that a new table is tested by the line that registers it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import lazysd
from lazysd.errors import LayoutError
from lazysd.layouts import Layout, Rule, all_layouts
from lazysd.testing import assert_round_trip, state_dicts
from lazysd.testing.strategies import PREFIXES

ALL = all_layouts()
PLAIN = (torch.bfloat16, torch.float32)


def round_trips(layout: Layout, max_examples: int = 50) -> None:
    """Random state dicts of the family go into the layout and come back with the very bits, or AssertionError."""

    prefixes = PREFIXES if any("{prefix}" in rule.hf for rule in layout.rules) else ("model.",)

    @given(state_dicts(layout.family, dtypes=PLAIN, prefixes=prefixes))
    @settings(max_examples=max_examples, suppress_health_check=list(HealthCheck))
    def check(state_dict: Any) -> None:
        def into(tensors: dict[str, Any]) -> Any:
            return lazysd.convert(tensors, layout.name, "hf", layout.family, state_dict.config)

        def back(tensors: dict[str, Any]) -> Any:
            return lazysd.convert(tensors, "hf", layout.name, layout.family, state_dict.config)

        assert_round_trip(into, back, state_dict)

    check()


@pytest.mark.parametrize("layout", ALL, ids=lambda layout: f"{layout.family}-{layout.name}")
def test_there_and_back(layout: Layout) -> None:
    round_trips(layout, max_examples=50 if layout.family == "qwen3_moe" else 4)


@pytest.mark.parametrize("layout", ALL, ids=lambda layout: f"{layout.family}-{layout.name}")
def test_is_described(layout: Layout) -> None:
    assert layout.description, f"`lazysd layouts` has nothing to say about {layout.name}"


@pytest.mark.parametrize("family", sorted({layout.family for layout in ALL}))
def test_every_family_has_a_hub(family: str) -> None:
    """Layouts of a family meet in `hf`, the one that strategies draw."""
    assert lazysd.layouts.get("hf", family).rules


def test_a_table_without_gate_and_up_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail."""
    registry = lazysd.layouts.registry._LAYOUTS
    monkeypatch.setattr(lazysd.layouts.registry, "_LAYOUTS", dict(registry))
    key = "{prefix}layers.{layer}.mlp.experts.{e}.down_proj.weight"
    only_down = Layout("x", "qwen3_moe", (Rule(key, "{prefix}layers.{layer}.mlp.experts.all", "[e] h i -> e h i"),))
    lazysd.layouts.register(only_down)
    with pytest.raises(LayoutError, match=r"(gate|up)_proj.* no rule covers"):
        round_trips(only_down, max_examples=5)

"""Every registered layout is tried, so that a new table is tested by the line that registers it."""

from __future__ import annotations

import pytest

import lazysd
from lazysd.errors import LayoutError
from lazysd.layouts import Layout, Rule, all_layouts
from lazysd.testing.conformance.layouts import there_and_back

ALL = all_layouts()


@pytest.mark.parametrize("layout", ALL, ids=lambda layout: f"{layout.family}-{layout.name}")
def test_there_and_back(layout: Layout) -> None:
    there_and_back(layout, max_examples=50 if layout.family == "qwen3_moe" else 4)


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
        there_and_back(only_down, max_examples=5)

"""Every registered layout is tried, so that a new table is tested by the line that registers it."""

from __future__ import annotations

import pytest
import torch

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


@pytest.mark.parametrize("to", ["nemo", "hf-fused"])
def test_a_bystander_of_the_name_that_an_embedding_gets(to: str) -> None:
    """Ling's word_embeddings become embed_tokens: a key that is called so already is no reason to lose one of them."""
    expert = "model.layers.0.mlp.experts.0.{}_proj.weight"
    hf = {expert.format(word): torch.ones(2, 2) for word in ("gate", "up", "down")}
    words = {"model.word_embeddings.weight": torch.ones(3, 2)}
    stated = {"to": to, "source": "hf", "family": "bailing_hybrid", "config": {"num_experts": 1}}
    for name in ("embed_tokens.weight", "model.model.embed_tokens.weight"):  # at another place
        made = lazysd.convert(hf | words | {name: torch.zeros(3, 2)}, **stated)
        assert {"model.embed_tokens.weight", name} <= set(made)
    for more in (words, {}):  # both become one key, or what comes out would be read back as the other
        with pytest.raises(LayoutError, match=r"model\.embed_tokens\.weight"):
            lazysd.convert(hf | more | {"model.embed_tokens.weight": torch.zeros(3, 2)}, **stated)

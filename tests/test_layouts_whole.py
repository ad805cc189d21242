"""Layers of which something is missing altogether, and keys that only a broad rename would take."""

from __future__ import annotations

import pytest
import torch
from checkpoints import random_hf

import lazysd
from lazysd.errors import LayoutError, MissingExpertsError


@pytest.mark.parametrize("to", ["hf", "hf-fused", "nemo"])
def test_half_a_layer_is_refused(to: str) -> None:
    """As a lost shard leaves it: layer 1 has gate and up of every expert, and no down."""
    hf = {key: t for key, t in random_hf(layers=2).items() if not ("layers.1." in key and "down_proj" in key)}
    with pytest.raises(MissingExpertsError, match=r"layers.1.mlp.experts.{e}.down_proj.weight, though .*both"):
        lazysd.convert(hf, to=to, source="hf", family="qwen3_moe")
    half = {key: t for key, t in hf.items() if "down_proj" not in key}
    assert lazysd.convert(half, to="hf-fused")


def test_a_broad_rename_makes_no_stranger_known() -> None:
    """kimi_k25's `language_model.` becomes `model.language_model.` whatever follows; not so an unknown expert's key."""
    at = "language_model.model.layers.0.mlp.experts.0."
    hf = {at + f"{word}_proj.weight": torch.zeros(2, 2) for word in ("gate", "up", "down")}
    assert lazysd.convert(hf, to="nemo", family="kimi_k25")
    with pytest.raises(LayoutError, match=r"experts.0.gate_proj.scale stands among the keys"):
        lazysd.convert({**hf, at + "gate_proj.scale": torch.zeros(2)}, to="nemo", family="kimi_k25")

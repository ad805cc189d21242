"""Layout torchtitan against torchtitan's own state dict adapters, which need nothing of its models but two names."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from checkpoints import assert_same
from standing_in import standing_in
from tiny_moe import NUM_EXPERTS, saved

import lazysd

pytest.importorskip("torchtitan")

ADAPTERS = {
    "qwen3_moe": ("qwen3", "Qwen3StateDictAdapter"),
    "deepseek_v3": ("deepseek_v3", "DeepSeekV3StateDictAdapter"),
}


def adapter(model: str, name: str) -> Any:
    """torchtitan's adapter; its models, which want Triton and more, are stood in for."""
    rope = SimpleNamespace(Config=object)
    packages = [f"torchtitan{inner}" for inner in ("", ".models", f".models.{model}", ".protocols")]
    members = {
        f"torchtitan.models.{model}.model": {"Qwen3Model": MagicMock(), "DeepSeekV3Model": MagicMock()},
        "torchtitan.protocols.model": {"BaseModel": MagicMock()},
        "torchtitan.models.common": {"__path__": []},
        "torchtitan.models.common.decoder": {"Decoder": MagicMock()},
        "torchtitan.models.common.rope": {"CosSinRoPE": rope, "ComplexRoPE": rope},
    }
    with standing_in(packages, members):
        module = importlib.import_module(f"torchtitan.models.{model}.state_dict_adapter")
    layer = SimpleNamespace(
        attention=SimpleNamespace(rope=None, q_lora_rank=6), moe=SimpleNamespace(num_experts=NUM_EXPERTS)
    )
    return getattr(module, name)(SimpleNamespace(layers=[layer], enable_weight_tying=False), None)


@pytest.mark.parametrize("model_type", ADAPTERS)
def test_equals_the_adapter(model_type: str) -> None:
    model = saved(model_type)
    disk = dict(model.disk)
    if model_type == "deepseek_v3":  # what an MTP layer has beside a layer's own tensors
        disk |= {f"model.layers.1.{name}.weight": torch.rand(3) for name in ("enorm", "hnorm", "shared_head.norm")}
    theirs = adapter(*ADAPTERS[model_type])
    ours = lazysd.convert(disk, to="torchtitan", config=model.config)
    assert_same(ours, theirs.from_hf(dict(disk)))
    assert_same(lazysd.convert(ours, to="hf", source="torchtitan", config=model.config), disk)
    assert_same(theirs.to_hf(dict(ours)), disk)


def test_gpt_oss_is_what_torchtitan_reads_from_mxfp4() -> None:
    """Its reader gives rows of 2 I that alternate gate and up, and rows of H: the shapes of the packed blocks."""
    model = saved("gpt_oss")
    head = "model.layers.0.mlp.experts."
    ours = lazysd.convert(model.disk, to="torchtitan", config=model.config)
    there = "layers.0.moe.routed_experts.inner_experts."
    assert torch.equal(ours[there + "mlp1_weight"], model.disk[head + "gate_up_proj"].transpose(1, 2))
    assert torch.equal(ours[there + "mlp2_weight"], model.disk[head + "down_proj"].transpose(1, 2))
    assert torch.equal(ours[there + "mlp1_bias"], model.disk[head + "gate_up_proj_bias"])
    assert torch.equal(ours[there + "mlp2_bias"], model.disk[head + "down_proj_bias"])
    assert_same(lazysd.convert(ours, to="hf", source="torchtitan", config=model.config), model.disk)

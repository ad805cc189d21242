"""Quantised experts in other layouts: converted then decoded is decoded then converted, and back is what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lazysd
from lazysd.errors import LayoutError
from lazysd.quantization import dequantize, quantize

KEY = "model.layers.0.mlp.experts.{}.{}_proj.weight"


def experts(E: int = 11, I: int = 64, H: int = 128) -> lazysd.Checkpoint:  # noqa: E741
    torch.manual_seed(0)
    tensors = {
        KEY.format(e, g): torch.randn(*((H, I) if g == "down" else (I, H)))
        for e in range(E)
        for g in ("gate", "up", "down")
    }
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.randn(64, H)
    config = {"model_type": "qwen3_moe", "num_experts": E, "hidden_size": H, "moe_intermediate_size": I}
    return lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}, config=config)


def bits(node: Any) -> torch.Tensor:
    return node.reshape(-1).materialize().view(torch.uint8)


def assert_same(ours: lazysd.Checkpoint, theirs: lazysd.Checkpoint) -> None:
    assert sorted(ours) == sorted(theirs)
    for key, node in theirs.items():
        assert (ours[key].code, ours[key].dims) == (node.code, node.dims), key
        assert torch.equal(bits(ours[key]), bits(node)), key


SQUARE = {"weight_block_size": [32, 32]}
OBLONG = {"weight_block_size": [16, 32]}


@pytest.mark.parametrize("to", ["hf-fused", "vllm", "nemo", "hf"])
@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        ("fp8-blocks", SQUARE),
        ("fp8-blocks", OBLONG),
        ("mxfp4-compressed", {}),
        ("nvfp4-modelopt", {}),
        ("nvfp4-compressed", {}),
    ],
)
def test_there_and_back(scheme: str, settings: dict[str, Any], to: str) -> None:
    source = quantize(experts(), scheme, **settings)
    if to == "nemo" and settings is not SQUARE:
        with pytest.raises(LayoutError, match=r"would have to be transposed for layout 'nemo'.*--dtype bf16"):
            source.convert(to)
        return
    made = source.convert(to)
    assert_same(dequantize(made), dequantize(source).convert(to))
    assert_same(made.convert("hf"), source)
    assert made.config == source.config


def test_names_of_what_travels() -> None:
    made = quantize(experts(), "nvfp4-modelopt").convert("vllm")
    at = "model.layers.0.mlp.experts."
    assert made[at + "w13_weight"].dims == (11, 128, 64)
    assert made[at + "w13_weight_scale"].dims == (11, 128, 8)
    assert made[at + "w13_weight_scale_2"].dims == (11, 2)
    assert made[at + "w2_weight_scale_2"].dims == (11,)
    assert made["model.layers.0.self_attn.q_proj.weight_scale"].dims == (64, 8)


def test_blocks_that_would_straddle_gate_and_up() -> None:
    from lazysd.quantization import quantize_pairs

    source = experts(2, 28)  # 28 rows in blocks of 16: two blocks each, and four for both, yet not the same ones
    pairs = quantize_pairs(source, (16, 16))
    config = {**(source.config or {}), "quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}
    ragged = lazysd.Checkpoint(pairs, config=config)
    for to in ("hf-fused", "nemo"):
        with pytest.raises(LayoutError, match=r"weight_scale_inv: 2 parts stand side by side in the 56 .* straddle"):
            ragged.convert(to)
    assert_same(ragged.convert("hf"), ragged)

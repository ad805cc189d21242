"""One number for a whole weight (global scales, scales of activations) where a layout puts weights side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantised_experts import SCHEMES, Tensors, experts, nvfp4_modelopt
from test_quant_travel import AT, assert_same, assert_travels, bits, with_equal_numbers

import lazysd
from lazysd.errors import LayoutError
from lazysd.quantization import dequantize

NUMBERS = ("fp8 a tensor", "8-bit a tensor", "8-bit modelopt", "nvfp4 modelopt", "nvfp4 compressed")
HEADS = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def lazily(tensors: Tensors, config: dict[str, Any], **stated: Any) -> lazysd.Checkpoint:
    return lazysd.Checkpoint({key: lazysd.from_torch(t) for key, t in tensors.items()}, config=config, **stated)


def dense(name: str) -> lazysd.Checkpoint:
    make, said, _ = SCHEMES[name]
    shapes = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64)}
    shapes |= {"mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}
    tensors = {f"model.layers.0.{at}.{end}": part for at, dims in shapes.items() for end, part in make(*dims).items()}
    return lazily(tensors, {"model_type": "qwen3", **HEADS, "quantization_config": said})


@pytest.mark.parametrize("name", SCHEMES)
def test_dense_projections_of_every_scheme(name: str) -> None:
    """Scales of activations are one for each of q, k and v, as vLLM has them; what decodes a weight is one for it."""
    source = dense(name)
    if name in NUMBERS:
        made = source.convert("vllm")
        key = next(key for key in made if "qkv_proj.weight" in key and made[key].numel() == 1)
        with pytest.raises(LayoutError, match=rf"part 0 of {key} and part 1 of {key} differ, .*: --dtype bf16"):
            made[key].materialize()
        source = with_equal_numbers(source)
    ends = r"\.weight_(scale|scale_inv|scale_2|global_scale)$"
    assert_travels(source, "vllm", joined=r"(k_proj|v_proj|up_proj)" + ends if name in NUMBERS else "")
    made = source.convert("vllm")
    for end in ("input_scale", "input_global_scale", "activation_scale"):
        if f"model.layers.0.mlp.gate_proj.{end}" in source:
            assert made[f"model.layers.0.self_attn.qkv_proj.{end}"].dims == (3,)
            assert made[f"model.layers.0.mlp.gate_up_proj.{end}"].dims == (2,)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("to", ["vllm", "hf-fused"])
def test_numbers_of_shape_one_and_of_none(name: str, to: str) -> None:
    """Either is read; back come the shapes that the programs of the format write."""
    tensors, config = experts(name, E=3)
    tensors = {key: tensor for key, tensor in tensors.items() if ".experts." in key}
    usual = {key: tensor.dim() for key, tensor in tensors.items() if tensor.numel() == 1}
    other = {key: t.reshape(() if t.dim() else (1,)) if t.numel() == 1 else t for key, t in tensors.items()}
    made = lazily(other, config).convert(to)
    assert_same(made, lazily(tensors, config).convert(to))
    back = made.convert("hf")
    assert {key: back[key].ndim for key in usual} == usual
    mixed = {key: other[key] if k % 2 else tensor for k, (key, tensor) in enumerate(tensors.items())}
    assert_same(lazily(mixed, config).convert(to), made)


def test_matrices_keep_the_shape_of_their_numbers() -> None:
    source = with_equal_numbers(dense("nvfp4 modelopt"))
    listed = {key: node.reshape(1) if node.numel() == 1 else node for key, node in source.items()}
    made = source.like(listed).convert("vllm")
    assert made["model.layers.0.self_attn.qkv_proj.weight_scale_2"].dims == (1,)
    assert_same(made.convert("hf").drop("*.input_scale"), source.like(listed).drop("*.input_scale"))


def fused(shared: Any, E: int = 11, I: int = 32, H: int = 64) -> lazysd.Checkpoint:  # noqa: E741
    """NVFP4 experts, gate over up, with global scales of a shape."""
    tensors: Tensors = {}
    for name, dims in (("gate_up_proj", (2 * I, H)), ("down_proj", (H, I))):
        made = [nvfp4_modelopt(*dims) for _ in range(E)]
        tensors[AT + name] = torch.stack([part["weight"] for part in made])
        tensors[f"{AT}{name}_weight_scale"] = torch.stack([part["weight_scale"] for part in made])
        for end in ("weight_scale_2", "input_scale"):
            tensors[f"{AT}{name}_{end}"] = torch.rand(shared(E))
    config = {"model_type": "qwen3_moe", "num_experts": E, "hidden_size": H, "moe_intermediate_size": I}
    return lazily(tensors, {**config, "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}})


@pytest.mark.parametrize("shared", [lambda E: (E,), lambda E: (E, 1), lambda E: (), lambda E: (1,)])
def test_one_number_for_gate_and_up_is_theirs_each(shared: Any) -> None:
    source = fused(shared)
    made = source.convert("hf")
    first, wanted = AT + "10.{}_proj.weight_scale_2", source[AT + "gate_up_proj_weight_scale_2"]
    for g in ("gate", "up"):
        assert torch.equal(bits(made[first.format(g)]), bits(wanted.reshape(-1)[-1:]))
        assert made[first.format(g)].dims == ()
    assert_same(dequantize(made), dequantize(source).convert("hf"))
    back = made.convert("hf-fused")
    assert back[AT + "gate_up_proj_weight_scale_2"].dims == (11, 2)  # one for each, as separate ones come
    assert_same(dequantize(back), dequantize(source))
    assert_same(back.convert("hf"), made)


def test_numbers_of_no_expert_are_named() -> None:
    for dims in ((3,), (11, 3), (2, 11)):
        with pytest.raises(LayoutError, match=r"gate_up_proj.*(global scale|not one number for each of the 11)"):
            fused(lambda E, dims=dims: dims).convert("hf")


def test_interleaved_gate_and_up_share_a_number_or_are_refused() -> None:
    """Halves of rows can have numbers of their own, every second row cannot."""
    make, said, _ = SCHEMES["nvfp4 modelopt"]
    tensors = {f"model.llm.layers.0.mlp.w13_dn.{end}": part for end, part in make(64, 64).items()}
    config = {"model_type": "inkling", "quantization_config": said}
    source = lazily(tensors, config, layout="hf", family="inkling")
    made = source.convert("hf-fused")
    assert_same(dequantize(made), dequantize(source).convert("hf-fused"))
    back = made.convert("hf")
    assert_same(back.drop("*.input_scale"), source.drop("*.input_scale"))
    key = "model.language_model.layers.0.mlp.up_proj.weight_scale_2"
    other = made.like({**made, key: lazysd.from_torch(torch.tensor(0.7))}).convert("hf")
    with pytest.raises(LayoutError, match=r"part 0 of \S*w13_dn\.weight_scale_2 and part 1 of .* differ"):
        other["model.llm.layers.0.mlp.w13_dn.weight_scale_2"].materialize()

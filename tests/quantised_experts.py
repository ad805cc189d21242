"""Small checkpoints with quantised experts: random codes and scales of every scheme, named as its tools do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
EXPERT = "model.layers.{}.mlp.experts.{}.{}_proj"


def fp8_codes(*dims: int) -> torch.Tensor:
    return torch.randint(0, 256, dims, dtype=torch.uint8).view(torch.float8_e4m3fn)  # NaN codes among them


def u8(*dims: int) -> torch.Tensor:
    return torch.randint(0, 256, dims, dtype=torch.uint8)


def blocks(rows: int, columns: int, scale: torch.dtype = torch.float32, also: bool = False) -> Callable[..., Tensors]:
    def make(R: int, C: int) -> Tensors:
        counts = (-(-R // rows), -(-C // columns))
        made = {"weight": fp8_codes(R, C), "weight_scale_inv": (torch.rand(counts) + 0.1).to(scale)}
        return made | ({"activation_scale": torch.rand(())} if also else {})

    return make


def eight_bits(shape: Callable[[int, int], tuple[int, ...]], int8: bool = False) -> Callable[..., Tensors]:
    def make(R: int, C: int) -> Tensors:
        codes = u8(R, C).view(torch.int8) if int8 else fp8_codes(R, C)
        return {"weight": codes, "weight_scale": torch.rand(shape(R, C)).bfloat16(), "input_scale": torch.rand(1)}

    return make


def per_tensor_modelopt(R: int, C: int) -> Tensors:
    return {"weight": fp8_codes(R, C), "weight_scale": torch.rand(()), "input_scale": torch.rand(())}


def mxfp4(R: int, C: int) -> Tensors:
    return {"weight_packed": u8(R, C // 2), "weight_scale": u8(R, C // 32)}


def nvfp4_modelopt(R: int, C: int) -> Tensors:
    made = {"weight": u8(R, C // 2), "weight_scale": fp8_codes(R, C // 16)}
    return made | {"weight_scale_2": torch.rand(()), "input_scale": torch.rand(())}


def nvfp4_compressed(R: int, C: int) -> Tensors:
    made = {"weight_packed": u8(R, C // 2), "weight_scale": fp8_codes(R, C // 16)}
    return made | {"weight_global_scale": torch.rand(1) * 1000, "input_global_scale": torch.rand(1)}


def packed(bits: int, group: int, zeros: bool = False) -> Callable[..., Tensors]:
    def make(R: int, C: int) -> Tensors:
        words, groups = -(-C * bits // 32), -(-C // group)
        made = {
            "weight_packed": torch.randint(-(2**31), 2**31, (R, words), dtype=torch.int32),
            "weight_scale": torch.rand(R, groups).bfloat16(),
            "weight_shape": torch.tensor([R, C]),
        }
        if zeros:
            made["weight_zero_point"] = torch.randint(-(2**31), 2**31, (-(-R * bits // 32), groups), dtype=torch.int32)
        return made

    return make


def gptq(R: int, C: int) -> Tensors:
    made = {"qweight": torch.randint(-(2**31), 2**31, (C // 8, R), dtype=torch.int32)}
    made |= {"qzeros": torch.randint(-(2**31), 2**31, (C // 32, R // 8), dtype=torch.int32)}
    return made | {"scales": torch.rand(C // 32, R).half(), "g_idx": (torch.arange(C) // 32).int()}


def compressed(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
GROUP16: dict[str, Any] = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
# name -> (parts of a weight (rows, columns), quantization_config, whether codes and scales may be transposed: None
# where gate and up need one number for both then)
SCHEMES: dict[str, tuple[Callable[..., Tensors], dict[str, Any], bool | None]] = {
    "fp8 square": (blocks(32, 32), {**FP8, "weight_block_size": [32, 32]}, True),
    "fp8 e8m0": (blocks(16, 16, torch.float8_e8m0fnu), {**FP8, "weight_block_size": [16, 16]}, True),
    "fp8 oblong": (blocks(16, 32), {**FP8, "weight_block_size": [16, 32]}, False),
    "fp8 static": (blocks(8, 8, also=True), {**FP8, "weight_block_size": [8, 8]}, True),
    "fp8 a tensor": (lambda R, C: {"weight": fp8_codes(R, C), "weight_scale_inv": torch.rand(())}, FP8, None),
    "8-bit a row": (eight_bits(lambda R, C: (R, 1)), compressed(num_bits=8, type="float", strategy="channel"), False),
    "8-bit row": (eight_bits(lambda R, C: (R,)), compressed(num_bits=8, type="float", strategy="channel"), False),
    "int8 a row": (eight_bits(lambda R, C: (R, 1), True), compressed(num_bits=8, type="int"), False),
    "8-bit a tensor": (eight_bits(lambda R, C: (1,)), compressed(num_bits=8, type="float", strategy="tensor"), None),
    "8-bit modelopt": (per_tensor_modelopt, {"quant_method": "modelopt", "quant_algo": "FP8"}, None),
    "8-bit in groups": (
        eight_bits(lambda R, C: (R, C // 16)),
        compressed(num_bits=8, type="float", strategy="group", group_size=16),
        False,
    ),
    "8-bit in blocks": (
        eight_bits(lambda R, C: (R // 16, C // 16)),
        compressed(num_bits=8, type="float", strategy="block", block_structure=[16, 16]),
        False,
    ),
    "mxfp4": (mxfp4, compressed(num_bits=4, type="float", strategy="group", group_size=32), False),
    "nvfp4 modelopt": (nvfp4_modelopt, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, True),
    "nvfp4 compressed": (nvfp4_compressed, compressed(**GROUP16), False),
    "int4": (packed(4, 32), compressed(num_bits=4, type="int", strategy="group", group_size=32), False),
    "int8 packed": (packed(8, 16), compressed(num_bits=8, type="int", strategy="group", group_size=16), False),
    "int3": (packed(3, 32), compressed(num_bits=3, type="int", strategy="group", group_size=32), False),
    "int4 with zeros": (packed(4, 16, True), compressed(num_bits=4, type="int", group_size=16, symmetric=False), False),
}


def experts(
    name: str,
    E: int = 11,
    I: int = 32,  # noqa: E741
    H: int = 64,
    layers: int = 1,
    model_type: str = "qwen3_moe",
) -> tuple[Tensors, dict[str, Any]]:
    """(tensors, config.json) of a model whose experts, and one more weight, are quantised."""
    make, said, _ = SCHEMES[name]
    torch.manual_seed(0)
    tensors: Tensors = {}
    for layer in range(layers):
        for e in range(E):
            for g in ("gate", "up", "down"):
                parts = make(H, I) if g == "down" else make(I, H)
                tensors |= {f"{EXPERT.format(layer, e, g)}.{end}": part for end, part in parts.items()}
        tensors |= {f"model.layers.{layer}.self_attn.q_proj.{end}": part for end, part in make(64, H).items()}
        tensors[f"model.layers.{layer}.mlp.gate.weight"] = torch.randn(E, H).bfloat16()
    config = {"model_type": model_type, "num_experts": E, "hidden_size": H, "moe_intermediate_size": I}
    return tensors, {**config, "quantization_config": said}

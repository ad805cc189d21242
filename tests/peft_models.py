"""What the tests with real PEFT share (0.21, and 0.18 in an environment of its own): a model, adapters, merging."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from lora_adapters import Tensors, adapter_config, native_lora, write_adapter
from peft import PeftModel

import lazysd

EXPERTS, LAYERS, RANK, ALPHA = 6, 2, 3, 8


def tiny_model(hidden: int = 32, inner: int = 24) -> Any:
    """A random Qwen3-MoE in float32."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=61, hidden_size=hidden, intermediate_size=24, moe_intermediate_size=inner, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=EXPERTS, num_experts_per_tok=2,
        max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(11)
    return transformers.Qwen3MoeForCausalLM(config).float().eval()


def random_native(model: Any, **options: Any) -> Tensors:
    """NeMo's grouped tensors for this model, small enough that float32 sums stay near those in float64."""
    config = model.config
    given = {"r": RANK, "layers": range(LAYERS), "finite": True} | options
    made = native_lora(EXPERTS, config.hidden_size, config.moe_intermediate_size, **given)
    return {key: 0.1 * tensor for key, tensor in made.items()}


def attention_lora(model: Any, rank: int = RANK) -> Tensors:
    key = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    torch.manual_seed(3)
    made = {}
    for layer in range(LAYERS):
        width, hidden = model.model.layers[layer].self_attn.q_proj.weight.shape
        made[key.format(layer, "A")] = 0.1 * torch.randn(rank, hidden)
        made[key.format(layer, "B")] = 0.1 * torch.randn(width, rank)
    return made


def in_float64(model: Any, native: Mapping[str, torch.Tensor], scale: Any) -> Tensors:
    """The model's state dict with the adapter put in: base + scale * A @ B, by plain torch, in float64.

    `scale` is a number, or a function of a parameter's name.
    """
    made = {key: tensor.detach().double() for key, tensor in model.state_dict().items()}
    for key, a in native.items():
        short = key.removeprefix("base_model.model.")
        if key.endswith("_A"):
            name = short.replace("lora_gate_and_up_A", "gate_up_proj").replace("lora_down_A", "down_proj")
            by = scale(name) if callable(scale) else scale
            b = native[key[:-1] + "B"].double()
            made[name] += by * torch.einsum("ehr,eru->euh", a.double(), b)  # stored (experts, out, in)
        elif key.endswith("lora_A.weight"):
            name = short.removesuffix("lora_A.weight") + "weight"
            by = scale(name.removesuffix(".weight")) if callable(scale) else scale
            made[name] += by * (native[key.replace("lora_A", "lora_B")].double() @ a.double())
    return made


def our_adapter(folder: Path, native: Mapping[str, torch.Tensor], layout: str, **fields: Any) -> Path:
    """Written by lazysd from NeMo's grouped tensors and an adapter_config.json without a generation."""
    said = adapter_config("nemo", **({"r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"]} | fields))
    if not any("q_proj" in key for key in native):
        said["target_modules"] = []
    write_adapter(folder / "nemo", native, said)
    lazysd.open(folder / "nemo").convert(layout).save(folder / layout)
    return folder / layout


def with_peft(model: Any, adapter: Path) -> Any:
    """PEFT's model with the adapter active; a missing or unexpected key is a warning, which fails the test."""
    return PeftModel.from_pretrained(copy.deepcopy(model), adapter).eval()


def merged_by_peft(model: Any, adapter: Path) -> Tensors:
    found = with_peft(model, adapter).merge_and_unload().state_dict()
    return {key: tensor.detach() for key, tensor in found.items()}


def largest_error(found: Mapping[str, Any], exact: Mapping[str, torch.Tensor]) -> float:
    assert set(found) == set(exact)
    tensors = {key: t if isinstance(t, torch.Tensor) else t.materialize() for key, t in found.items()}
    return max(float((tensors[key].double() - exact[key]).abs().max()) for key in exact)


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(24).reshape(2, 12) % 61
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found

"""Small Qwen3-MoE checkpoints for tests, and comparing tensors by their bits. Plain torch, nothing of lazysd."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as integers of the same width: NaN payloads count."""
    return tensor.detach().contiguous().view(WORDS[tensor.element_size()])


def noise(dims: tuple[int, ...], dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    """Every bit random: NaNs with payloads, infinities, denormals."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (prod(dims) * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(dims)


def expert_key(expert: int, projection: str, layer: int = 0, prefix: str = "model.") -> str:
    return f"{prefix}layers.{layer}.mlp.experts.{expert}.{projection}_proj.weight"


def random_hf(
    experts: int = 3,
    hidden: int = 4,
    inner: int = 5,
    layers: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    prefix: str = "model.",
    first_layer: int = 0,
) -> dict[str, torch.Tensor]:
    """A state dict in layout hf, with a router, a norm and an embedding beside the experts."""
    made = {f"{prefix}embed_tokens.weight": noise((7, hidden), dtype, 1)}
    for layer in range(first_layer, first_layer + layers):
        made[f"{prefix}layers.{layer}.mlp.gate.weight"] = noise((experts, hidden), dtype, 2 + layer)
        for expert in range(experts):
            for number, (name, dims) in enumerate(
                (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner)))
            ):
                seed = 10 + (layer * experts + expert) * 3 + number
                made[expert_key(expert, name, layer, prefix)] = noise(dims, dtype, seed)
        made[f"{prefix}layers.{layer}.input_layernorm.weight"] = noise((hidden,), dtype, 3 + layer)
    return made


def by_hand(hf: Mapping[str, torch.Tensor], experts: int, layer: int = 0, prefix: str = "model.") -> dict[str, Any]:
    """The experts of one layer in layouts nemo and hf-fused, by eager torch and nothing else."""
    gate, up, down = (
        torch.stack([bits(hf[expert_key(e, name, layer, prefix)]) for e in range(experts)])
        for name in ("gate", "up", "down")
    )
    head = f"{prefix}layers.{layer}.mlp.experts."
    fused = torch.cat([gate, up], dim=1)
    return {
        "nemo": {head + "gate_and_up_projs": fused.transpose(1, 2), head + "down_projs": down.transpose(1, 2)},
        "hf-fused": {head + "gate_up_proj": fused, head + "down_proj": down},
    }


def write(
    folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1, config: dict[str, Any] | None = None
) -> Path:
    """Save with safetensors itself, keys dealt out to shards in turn, with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    if shards == 1:
        names = ["model.safetensors"]
    weight_map = {key: names[number % shards] for number, key in enumerate(tensors)}
    for name in names:
        part = {key: tensors[key].contiguous() for key, place in weight_map.items() if place == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """The same keys, shapes, dtypes and bits; either side may be lazy."""
    assert set(found) == set(expected)
    for key, other in expected.items():
        here, there = (
            value if isinstance(value, torch.Tensor) else value.materialize() for value in (found[key], other)
        )
        assert here.shape == there.shape, key
        assert here.dtype == there.dtype, key
        assert torch.equal(bits(here), bits(there)), key

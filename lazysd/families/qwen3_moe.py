"""Qwen3-MoE."""

from ..layouts.family import Experts, Family, Speech

FAMILY = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    experts=Experts(),
    speaks={"nemo": Speech(), "torchtitan": Speech(), "megatron": Speech()},
    source="transformers 5.23 and nemo-automodel 0.7.0, files they wrote",
)

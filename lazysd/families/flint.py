"""Flint: Qwen3-MoE's experts; attention sinks have another name in memory."""

from ..layouts.family import Experts, Family, Speech

ATTENTION = "{prefix}layers.{layer}.self_attn."

FAMILY = Family(
    name="flint",
    model_types=("flint",),
    experts=Experts(),
    speaks={"hf-fused": Speech(renames=((ATTENTION + "softmax_offset", ATTENTION + "sinks"),))},
    has=("shared_expert.down_proj.weight",),
    source="transformers 5.23, both forms saved and compared",
)

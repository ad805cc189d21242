"""Qwen3-VL-MoE. The hub has (E, H, 2I) under the very keys under which transformers 5.23 saves (E, 2I, H)."""

from ..layouts.family import TRANSPOSED, Experts, Family, Speech

FAMILY = Family(
    name="qwen3_vl_moe",
    model_types=("qwen3_vl_moe", "qwen3_vl_moe_text"),
    experts=Experts(),
    speaks={
        "hf-transposed": Speech(
            form=TRANSPOSED,
            description="as published on the hub: experts stacked and transposed, under the keys of hf-fused",
            source="Qwen3-VL-MoE's published checkpoints",
        ),
        "nemo": Speech(),
    },
    has=("visual.pos_embed.weight",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

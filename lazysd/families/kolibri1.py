"""Kolibri 1: the router's bias stands in a block of its own on disk."""

from ..layouts.family import Experts, Family, Speech

LAYER = "{prefix}layers.{layer}."

FAMILY = Family(
    name="kolibri1",
    model_types=("kolibri1",),
    experts=Experts(),
    speaks={
        "hf-fused": Speech(
            renames=(
                (LAYER + "moe.router.expert_bias", LAYER + "mlp.gate.e_score_correction_bias"),
                (LAYER + "post_attn_norm.weight", LAYER + "post_self_attn_layernorm.weight"),
                (LAYER + "post_ffn_norm.weight", LAYER + "post_mlp_layernorm.weight"),
            )
        )
    },
    has=("_bias",),
    source="transformers 5.23, both forms saved and compared",
)

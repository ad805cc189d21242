"""Qwen3.5-MoE. The hub has the layers fused, as transformers in memory, and the MTP layers per expert."""

from ..layouts.family import FUSED, PER_EXPERT, Experts, Family, Speech

FAMILY = Family(
    name="qwen3_5_moe",
    model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
    experts=(Experts(), Experts("mtp.layers.{layer}.mlp.experts.")),
    speaks={
        "hf-hub": Speech(
            form=(FUSED, PER_EXPERT),
            description="as published on the hub: layers fused as in memory, MTP layers per expert",
            source="Qwen3.5-MoE's published checkpoints",
        ),
        "nemo": Speech(
            renames=(
                ("{prefix}mlp.shared_expert.{w:*}.weight", "{prefix}mlp.shared_experts.{w:*}.weight"),
                ("{prefix}linear_attn.{w:A_log|dt_bias}", "{prefix}linear_attn._fp32_params.{w:A_log|dt_bias}"),
                ("mtp.fc.weight", "mtp.layers.0.eh_proj.weight"),
                ("mtp.pre_fc_norm_embedding.weight", "mtp.layers.0.enorm.weight"),
                ("mtp.pre_fc_norm_hidden.weight", "mtp.layers.0.hnorm.weight"),
                ("mtp.norm.weight", "mtp.layers.0.final_layernorm.weight"),
            )
        ),
        "torchtitan": "torchtitan cuts the linear attention's in_proj_qkv and conv1d in parts of unequal size",
    },
    has=("linear_attn.conv1d.weight",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

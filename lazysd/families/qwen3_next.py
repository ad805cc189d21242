"""Qwen3-Next: a shared expert, linear attention, and MTP layers that NeMo leaves per expert."""

from ..layouts.family import PER_EXPERT, Experts, Family, Speech

FAMILY = Family(
    name="qwen3_next",
    model_types=("qwen3_next",),
    experts=(Experts(), Experts("mtp.layers.{layer}.mlp.experts.")),
    speaks={
        "nemo": Speech(
            form=(None, PER_EXPERT),
            renames=(
                ("{prefix}mlp.shared_expert.{w:*}.weight", "{prefix}mlp.shared_experts.{w:*}.weight"),
                ("{prefix}linear_attn.{w:A_log|dt_bias}", "{prefix}linear_attn._fp32_params.{w:A_log|dt_bias}"),
            ),
        )
    },
    has=("linear_attn.conv1d.weight",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

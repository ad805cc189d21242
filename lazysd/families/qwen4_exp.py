"""Qwen4-Exp (Qwen3.8-Flash-Next): Qwen3.5-MoE's layers, and n-gram tables cut in many shards on disk."""

from ..layouts.family import Experts, Family, Speech

TABLE = "{prefix}ple.ple_embedding.ngram_embedding."
WHOLE = (TABLE + "shard_{s}.weight", TABLE + "weight", "[s] n d -> (s n) d")

FAMILY = Family(
    name="qwen4_exp",
    model_types=("qwen4_exp", "qwen4_exp_text"),
    experts=Experts(),
    speaks={
        "hf-fused": Speech(renames=(WHOLE,)),
        "nemo": Speech(  # its adapter leaves MTP tensors out, and reads the table through views of NeMo's own
            renames=(
                WHOLE,
                ("{prefix}mlp.shared_expert.{w:*}.weight", "{prefix}mlp.shared_experts.{w:*}.weight"),
                ("{prefix}linear_attn.{w:A_log|dt_bias}", "{prefix}linear_attn._fp32_params.{w:A_log|dt_bias}"),
            )
        ),
    },
    sizes={"s": ("split_ngram_parts",)},
    has=("hc_norm.weight",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

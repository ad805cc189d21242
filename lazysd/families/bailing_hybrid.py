"""Ling / Ring hybrid: attention under names of its own; memory has one convolution for q, k and v."""

from ..layouts.family import Experts, Family, Speech

LAYER = "{prefix}layers.{layer}."
HERE = LAYER + "attention."
THERE = LAYER + "self_attn."
EMBED = ("model.word_embeddings.weight", "model.embed_tokens.weight")
BIAS = (LAYER + "mlp.gate.expert_bias", LAYER + "mlp.gate.e_score_correction_bias")
STATE = "{w:A_log|dt_bias}"

FAMILY = Family(
    name="bailing_hybrid",
    model_types=("bailing_hybrid",),
    experts=Experts(),
    speaks={
        "hf-fused": Speech(
            renames=(
                EMBED,
                BIAS,
                (HERE + STATE, THERE + "forget_gate." + STATE),
                (HERE + "f_proj.weight", THERE + "forget_gate.f_proj.weight"),
                (HERE + "{c:q|k|v}_conv1d.weight", THERE + "conv1d.weight", "[c] a 1 b -> (c a) 1 b"),
                (HERE + "dense.{w:weight|bias}", THERE + "o_proj.{w:weight|bias}"),
                (HERE + "{a:*}.{w:weight|bias}", THERE + "{a:*}.{w:weight|bias}"),
            )
        ),
        "nemo": Speech(
            renames=(
                EMBED,
                BIAS,
                (HERE + "dense.{w:weight|bias}", THERE + "o_proj.{w:weight|bias}"),
                (HERE + "query_layernorm.weight", THERE + "q_norm.weight"),
                (HERE + "key_layernorm.weight", THERE + "k_norm.weight"),
            )
        ),
    },
    has=("_bias",),
    source="transformers 5.23 and nemo-automodel 0.7.0 (ling_v2)",
)

"""Kimi-Linear: Mixtral's words; memory has one convolution for q, k and v."""

from ..layouts.family import Experts, Family, Speech

LAYER = "{prefix}layers.{layer}."
BLOCK = LAYER + "block_sparse_moe."
MLP = LAYER + "mlp."
BESIDE = (
    (BLOCK + "gate.{w:weight|e_score_correction_bias}", MLP + "gate.{w:weight|e_score_correction_bias}"),
    (BLOCK + "shared_experts.{w:*}.weight", MLP + "shared_experts.{w:*}.weight"),
)
STATE = "{w:A_log|dt_bias}"

FAMILY = Family(
    name="kimi_linear",
    model_types=("kimi_linear",),
    experts=Experts(BLOCK + "experts.", gate="w1", up="w3", down="w2"),
    speaks={
        "hf-fused": Speech(
            MLP + "experts.",
            renames=(
                *BESIDE,
                (LAYER + "self_attn." + STATE, LAYER + "self_attn.forget_gate." + STATE),
                (
                    LAYER + "self_attn.{w:f_a_proj|f_b_proj}.weight",
                    LAYER + "self_attn.forget_gate.{w:f_a_proj|f_b_proj}.weight",
                ),
                (
                    LAYER + "self_attn.{c:q|k|v}_conv1d.weight",
                    LAYER + "self_attn.conv1d.weight",
                    "[c] a 1 b -> (c a) 1 b",
                ),
            ),
        ),
        "nemo": Speech(
            MLP + "experts.",
            renames=(*BESIDE, (LAYER + "self_attn." + STATE, LAYER + "self_attn._fp32_params." + STATE)),
        ),
    },
    refuses={
        BLOCK + "{w:gate_proj|up_proj|down_proj}.weight": "published dense layers are called mlp; transformers 5.23 "
        "saves them below block_sparse_moe: rename them to mlp first"
    },
    has=("dt_bias",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

"""ERNIE 4.5 MoE: the router's correction stands beside the gate on disk."""

from ..layouts.family import Experts, Family, Speech

MLP = "{prefix}layers.{layer}.mlp."
STATICS = "moe_statics.e_score_correction_bias"

FAMILY = Family(
    name="ernie4_5_moe",
    model_types=("ernie4_5_moe",),
    experts=Experts(),
    speaks={
        "hf-fused": Speech(renames=((MLP + STATICS, MLP + "gate." + STATICS),)),
        "nemo": Speech(renames=((MLP + STATICS, MLP + "gate.e_score_correction_bias", "1 a -> a"),)),
    },
    has=("e_score_correction_bias",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

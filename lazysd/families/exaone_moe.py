"""EXAONE MoE: the router's correction belongs to the gate in memory."""

from ..layouts.family import Experts, Family, Speech

MLP = "{prefix}layers.{layer}.mlp."

FAMILY = Family(
    name="exaone_moe",
    model_types=("exaone_moe",),
    experts=Experts(),
    speaks={
        "hf-fused": Speech(
            renames=((MLP + "e_score_correction_bias", MLP + "gate.e_score_correction_bias"),),
        )
    },
    has=("e_score_correction_bias",),
    source="transformers 5.23, both forms saved and compared",
)

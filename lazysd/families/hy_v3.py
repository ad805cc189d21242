"""Hunyuan V3: router, its bias and the shared expert under names of their own on disk."""

from ..layouts.family import Experts, Family, Speech

MLP = "{prefix}layers.{layer}.mlp."
GATE = (MLP + "router.gate.weight", MLP + "gate.weight")
SHARED = (MLP + "shared_mlp.{w:*}.weight", MLP + "shared_experts.{w:*}.weight")

FAMILY = Family(
    name="hy_v3",
    model_types=("hy_v3",),
    experts=Experts(),
    speaks={
        "hf-fused": Speech(renames=(GATE, SHARED, (MLP + "expert_bias", MLP + "e_score_correction_bias"))),
        "nemo": Speech(renames=(GATE, SHARED, (MLP + "expert_bias", MLP + "gate.e_score_correction_bias"))),
    },
    has=("_bias",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

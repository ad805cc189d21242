"""Laguna: one shared expert on disk, several in memory; the router's correction stands among the experts."""

from ..layouts.family import Experts, Family, Speech

MLP = "{prefix}layers.{layer}.mlp."
RENAMES = (
    (MLP + "experts.e_score_correction_bias", MLP + "gate.e_score_correction_bias"),
    (MLP + "shared_expert.{w:*}.weight", MLP + "shared_experts.{w:*}.weight"),
)

FAMILY = Family(
    name="laguna",
    model_types=("laguna",),
    experts=Experts(),
    speaks={"hf-fused": Speech(renames=RENAMES), "nemo": Speech(renames=RENAMES)},
    has=("e_score_correction_bias",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

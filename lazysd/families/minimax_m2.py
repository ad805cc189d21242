"""MiniMax-M2: Mixtral's words and a bias that corrects the router."""

from ..layouts.family import Experts, Family, Speech

BLOCK = "{prefix}layers.{layer}.block_sparse_moe."
MLP = "{prefix}layers.{layer}.mlp."
GATE = (BLOCK + "gate.weight", MLP + "gate.weight")
BIAS = "e_score_correction_bias"

FAMILY = Family(
    name="minimax_m2",
    model_types=("minimax_m2",),
    experts=Experts(BLOCK + "experts.", gate="w1", up="w3", down="w2", inner=("intermediate_size",)),
    speaks={
        "hf-fused": Speech(MLP + "experts.", renames=(GATE, (BLOCK + BIAS, MLP + BIAS))),
        "nemo": Speech(MLP + "experts.", renames=(GATE, (BLOCK + BIAS, MLP + "gate." + BIAS))),
    },
    has=("e_score_correction_bias",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

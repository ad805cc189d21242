"""Phi-3.5-MoE: Mixtral's words; its gate is a router in memory."""

from ..layouts.family import Experts, Family, Speech

BLOCK = "{prefix}layers.{layer}.block_sparse_moe."
MLP = "{prefix}layers.{layer}.mlp."

FAMILY = Family(
    name="phimoe",
    model_types=("phimoe",),
    experts=Experts(BLOCK + "experts.", gate="w1", up="w3", down="w2", inner=("intermediate_size",)),
    speaks={"hf-fused": Speech(MLP + "experts.", renames=((BLOCK + "gate.weight", MLP + "router.weight"),))},
    has=("input_layernorm.bias",),
    source="transformers 5.23, both forms saved and compared",
)

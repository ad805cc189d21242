"""Mixtral and MiniMax: w1 is the gate, w3 up, w2 down, in a block of their own."""

from ..dialects.megatron import COMMON, MCORE, NORM
from ..layouts.family import Experts, Family, Speech

BLOCK = "{prefix}layers.{layer}.block_sparse_moe."
MLP = "{prefix}layers.{layer}.mlp."
MEGATRON = (
    *COMMON,
    (NORM, MCORE + "pre_mlp_layernorm.weight"),
    ("model.layers.{layer}.block_sparse_moe.gate.weight", MCORE + "mlp.router.weight"),
)

FAMILIES = tuple(
    Family(
        name=name,
        model_types=(name,),
        experts=Experts(BLOCK + "experts.", gate="w1", up="w3", down="w2", inner=("intermediate_size",)),
        speaks={"hf-fused": Speech(MLP + "experts.", renames=((BLOCK + "gate.weight", MLP + "gate.weight"),))}
        | ({"megatron": Speech(renames=MEGATRON)} if name == "mixtral" else {}),
        has=("self_attn.q_proj.weight",),
        lacks=("self_attn.q_norm.weight",),
        source="transformers 5.23, both forms saved and compared",
    )
    for name in ("mixtral", "minimax")
)

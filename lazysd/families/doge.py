"""Doge: each expert is a row of two embeddings, so one unit wide; in memory as on disk."""

from ..layouts.family import Experts, Family, Speech

DISK = {"gate_up": ("{g}.weight", "(e i) h"), "down": ("{down}.weight", "(e i) h")}
MLP = "{prefix}layers.{layer}.mlp."

FAMILY = Family(
    name="doge",
    model_types=("doge",),
    experts=Experts(MLP + "experts.", gate=None, up="down_embed", down="up_embed", disk=DISK, inner=("1",)),
    speaks={
        "hf": Speech(at=MLP),
        "hf-fused": Speech(at=MLP, form=DISK),
        "vllm": "vLLM is not known to have experts that are rows of an embedding",
    },
    has=("router_gate.weight",),
    source="transformers 5.23, both forms saved and compared",
)

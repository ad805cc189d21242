"""DBRX: the rows of all experts one below the other; w1 is the gate, v1 up, w2 down (transposed)."""

from ..layouts.family import Experts, Family, Speech

DISK = {"gate_up": ("mlp.{g:w1|v1}", "[g] (e i) h"), "down": ("mlp.w2", "(e i) h")}

FAMILY = Family(
    name="dbrx",
    model_types=("dbrx",),
    experts=Experts(
        "{prefix}blocks.{layer}.ffn.experts.",
        disk=DISK,
        num=("ffn_config.moe_num_experts",),
        hidden=("d_model",),
        inner=("ffn_config.ffn_hidden_size",),
    ),
    speaks={"hf-fused": Speech(form=DISK)},
    source="transformers 5.23, both forms saved and compared",
)

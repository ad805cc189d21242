"""MiMo-V2-Flash: attention sinks have another name in memory."""

from ..layouts.family import Experts, Family, Speech

ATTENTION = "{prefix}layers.{layer}.self_attn."

FAMILY = Family(
    name="mimo_v2_flash",
    model_types=("mimo_v2_flash",),
    experts=Experts(),
    speaks={
        "hf-fused": Speech(renames=((ATTENTION + "attention_sink_bias", ATTENTION + "sinks"),)),
        "nemo": Speech(),
    },
    has=("e_score_correction_bias",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

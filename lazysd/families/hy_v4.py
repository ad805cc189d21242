"""Hunyuan V4: experts stacked on disk; hyper-connections, sinks and gates have other names in memory."""

from ..layouts.family import FUSED, Experts, Family, Speech

LAYER = "{prefix}layers.{layer}."

FAMILY = Family(
    name="hy_v4",
    model_types=("hy_v4",),
    experts=Experts(disk=FUSED),
    speaks={
        "hf-fused": Speech(
            renames=(
                ("{prefix}hc_pre.hc_head.hc_head_{w:fn|base|scale}", "{prefix}hc_head.hc_{w:fn|base|scale}"),
                (LAYER + "hc_pre.hc_attn_layer.hc_{w:fn|base|scale}", LAYER + "attn_hc.{w:fn|base|scale}"),
                (LAYER + "hc_pre.hc_mlp_layer.hc_{w:fn|base|scale}", LAYER + "ffn_hc.{w:fn|base|scale}"),
                (LAYER + "self_attn.learnable_sink_param", LAYER + "self_attn.sinks"),
                ("{prefix}linear_gate.weight", "{prefix}gate_proj.weight"),
            )
        )
    },
    has=("e_score_correction_bias",),
    source="transformers 5.23, both forms saved and compared",
)

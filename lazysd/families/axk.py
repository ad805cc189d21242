"""A.X-K1 and A.X-K2."""

from ..layouts.family import Experts, Family, Speech

LAYER = "{prefix}layers.{layer}."

FAMILIES = (
    Family(
        name="axk1",
        model_types=("axk1",),
        experts=Experts(),
        speaks={
            "hf-fused": Speech(
                renames=((LAYER + "post_mlp_layernorm.weight", LAYER + "mlp.post_mlp_layernorm.weight"),)
            )
        },
        has=("kv_a_proj_with_mqa.weight",),
        source="transformers 5.23, both forms saved and compared",
    ),
    Family(
        name="axk2",
        model_types=("axk2",),
        experts=Experts(),
        speaks={
            "hf-fused": Speech(
                renames=(
                    ("{prefix}W_down.weight", "{prefix}mlp.fc1.weight"),
                    ("{prefix}W_up.weight", "{prefix}mlp.fc2.weight"),
                    (LAYER + "self_attn.q_b_proj.weight", LAYER + "self_attn.q_gate_proj.weight"),
                )
            )
        },
        has=("kv_a_proj_with_mqa.weight",),
        source="transformers 5.23, both forms saved and compared",
    ),
)

"""Switch Transformers and NLLB-MoE: encoder and decoder, experts not gated, a module each, in memory as on disk."""

from ..layouts.family import Experts, Family, Speech

DISK = {
    "gate_up": ("expert_{e}.{g}.weight", "[e g] i h"),
    "down": ("expert_{e}.{down}.weight", "[e] h i"),
    "gate_up_bias": ("expert_{e}.{g}.bias", "[e g] i"),
    "down_bias": ("expert_{e}.{down}.bias", "[e] h"),
}
TESTED = "transformers 5.23, both forms saved and compared"
SAME = {"hf-fused": Speech(form=DISK)}

FAMILIES = (
    Family(
        name="switch_transformers",
        model_types=("switch_transformers",),
        experts=Experts(
            "{prefix}block.{layer}.layer.{part}.mlp.experts.",
            gate=None,
            up="wi",
            down="wo",
            disk=DISK,
            hidden=("d_model",),
            inner=("d_ff",),
        ),
        speaks=SAME,
        source=TESTED,
    ),
    Family(
        name="nllb-moe",
        model_types=("nllb-moe",),
        experts=tuple(
            Experts(
                "{prefix}" + side + ".layers.{layer}.ffn.experts.",
                gate=None,
                up="fc1",
                down="fc2",
                disk=DISK,
                bias=True,
                hidden=("d_model",),
                inner=(side + "_ffn_dim",),
            )
            for side in ("encoder", "decoder")
        ),
        speaks=SAME,
        source=TESTED,
    ),
)

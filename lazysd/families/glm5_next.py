"""GLM-5-Next: Qwen3-MoE's experts; hyper-connections and the forget gate are modules in memory, one convolution too."""

from ..layouts.family import Experts, Family, Speech

LAYER = "{prefix}layers.{layer}."
HERE = LAYER + "self_attn."
GATE = LAYER + "self_attn.forget_gate."

FAMILY = Family(
    name="glm5_next",
    model_types=("glm5_next", "glm5_next_text"),
    experts=Experts(),
    speaks={
        "hf-fused": Speech(
            renames=(
                (LAYER + "hc_{x:attn|ffn}_{w:fn|base|scale}", LAYER + "{x:attn|ffn}_hc.{w:fn|base|scale}"),
                (HERE + "{w:A_log|dt_bias}", GATE + "{w:A_log|dt_bias}"),
                (HERE + "{w:f_a_proj|f_b_proj}.weight", GATE + "{w:f_a_proj|f_b_proj}.weight"),
                (HERE + "{c:q|k|v}_conv1d.weight", HERE + "conv1d.weight", "[c] a 1 b -> (c a) 1 b"),
            )
        ),
        "nemo": Speech(  # its adapter leaves the MTP layer out, which is a layer like the others here
            renames=(
                (LAYER + "hc_{x:attn|ffn}_fn", LAYER + "{x:attn|ffn}_hc.fn"),
                (LAYER + "hc_{x:attn|ffn}_{w:base|scale}", LAYER + "{x:attn|ffn}_hc._fp32_params.{w:base|scale}"),
                (HERE + "{w:A_log|dt_bias}", HERE + "_fp32_params.{w:A_log|dt_bias}"),
            )
        ),
    },
    has=("dt_bias", "e_score_correction_bias"),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

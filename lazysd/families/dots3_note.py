"""dots3-note: Qwen3-MoE's experts; the whole model has experts in its vision encoder too, more in each later layer."""

from ..layouts.family import Experts, Family

TESTED = "transformers 5.23, both forms saved and compared"
PYRAMID = "the number of experts of its vision encoder differs from layer to layer, and no table can say that yet"
HAS = ("self_attn.k_rope_only_layernorm.weight",)

FAMILIES = (
    Family(
        name="dots3_note",
        model_types=("dots3_note",),
        experts=Experts("model.layers.{layer}.mlp.experts.", config="text_config"),
        speaks={"hf-fused": PYRAMID, "vllm": PYRAMID},
        has=(*HAS, "vision_encoder.post_trunk_norm.weight"),
        source=TESTED,
    ),
    Family(name="dots3_note_text", model_types=("dots3_note_text",), experts=Experts(), has=HAS, source=TESTED),
)

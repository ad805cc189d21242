"""Mistral Large 4: Mistral's own names on disk; the vision tower's q and k turn their rotary pairs in memory."""

from ..layouts.family import Experts, Family, Speech

HUB, MEMORY = "layers.{layer}.", "model.language_model.layers.{layer}."
ATTN, THERE = HUB + "attention.", MEMORY + "self_attn."
EYE, EYE_THERE = "vision_encoder.", "model.vision_tower."
EYES, EYES_THERE = EYE + "transformer.layers.{layer}.", EYE_THERE + "transformer.layers.{layer}."
PROJECTOR = "model.multi_modal_projector."
PAIRS = "(n d 2) h -> (n 2 d) h"
WORDS = ("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")

FAMILY = Family(
    name="mistral_large4",
    model_types=("mistral_large4",),
    experts=Experts(HUB + "experts.", gate="w1", up="w3", down="w2"),
    speaks={
        "hf-fused": Speech(
            MEMORY + "mlp.experts.",
            renames=(
                ("tok_embeddings.weight", "model.language_model.embed_tokens.weight"),
                ("norm.weight", "model.language_model.norm.weight"),
                ("output.weight", "lm_head.weight"),
                ("lerope.alpha", "model.language_model.rotary_emb.alpha"),
                (HUB + "attention_norm.weight", MEMORY + "input_layernorm.weight"),
                (HUB + "ffn_norm.weight", MEMORY + "post_attention_layernorm.weight"),
                (HUB + "gate.weight", MEMORY + "mlp.gate.weight"),
                *((HUB + f"feed_forward.{a}.weight", MEMORY + f"mlp.{b}.weight") for a, b in WORDS),
                *((HUB + f"shared_experts.{a}.weight", MEMORY + f"mlp.shared_experts.{b}.weight") for a, b in WORDS),
                (ATTN + "wq.weight", THERE + "q_proj.weight"),
                (ATTN + "wo.weight", THERE + "o_proj.weight"),
                (ATTN + "wkv_a_with_mqa.weight", THERE + "kv_a_proj_with_mqa.weight"),
                (ATTN + "wkv_b.weight", THERE + "kv_b_proj.weight"),
                (ATTN + "kv_a_norm.weight", THERE + "kv_a_layernorm.weight"),
                (ATTN + "ssmax_scaling.s", THERE + "softmax_scaling.scale"),
                (ATTN + "ssmax_scaling.b", THERE + "softmax_scaling.bias"),
                (ATTN + "indexer.ssmax_scaling.s", THERE + "indexer.softmax_scaling.scale"),
                (ATTN + "indexer.ssmax_scaling.b", THERE + "indexer.softmax_scaling.bias"),
                (ATTN + "indexer.{x:*}.{w:weight|bias}", THERE + "indexer.{x:*}.{w:weight|bias}"),
                ("pre_mm_projector_norm.weight", PROJECTOR + "norm.weight"),
                ("patch_merger.merging_layer.weight", PROJECTOR + "patch_merger.merging_layer.weight"),
                ("vision_language_adapter.w_in.{w:weight|bias}", PROJECTOR + "linear_1.{w:weight|bias}"),
                ("vision_language_adapter.w_out.{w:weight|bias}", PROJECTOR + "linear_2.{w:weight|bias}"),
                (EYES + "attention.wq.weight", EYES_THERE + "attention.q_proj.weight", PAIRS),
                (EYES + "attention.wk.weight", EYES_THERE + "attention.k_proj.weight", PAIRS),
                (EYES + "attention.wv.weight", EYES_THERE + "attention.v_proj.weight"),
                (EYES + "attention.wo.weight", EYES_THERE + "attention.o_proj.weight"),
                *((EYES + f"feed_forward.{a}.weight", EYES_THERE + f"feed_forward.{b}.weight") for a, b in WORDS),
                (EYE + "{rest:**}", EYE_THERE + "{rest:**}"),
            ),
        ),
    },
    sizes={"n": ("vision_config.num_attention_heads",)},
    has=("indexer.q_input_norm.weight",),
    source="transformers 5.23, both forms saved and compared",
)

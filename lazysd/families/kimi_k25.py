"""Kimi K2.5: DeepSeek-V3's experts below a language model, with a vision tower."""

from ..layouts.family import Experts, Family, Speech

EYE, EYE_THERE = "vision_tower.encoder.blocks.{layer}.", "model.vision_tower.layers.{layer}."
ENDS = "{w:weight|bias}"
QKV = "attn.{c:q_proj|k_proj|v_proj}."
TURNED = "[c] (n 2 d)|(n 2 d)|(n d 2)"  # rotary pairs become halves in q and k
HUB = "language_model.model.layers.{layer}.mlp.experts."

FAMILY = Family(
    name="kimi_k25",
    model_types=("kimi_k25",),
    experts=Experts(HUB),
    speaks={
        "hf-fused": Speech(
            at="model.language_model.layers.{layer}.mlp.experts.",
            renames=(
                ("language_model.model.{rest:**}", "model.language_model.{rest:**}"),
                ("language_model.lm_head.{rest:**}", "lm_head.{rest:**}"),
                (EYE + "wqkv.weight", EYE_THERE + QKV + "weight", f"(c n d 2) h -> {TURNED} h"),
                (EYE + "wqkv.bias", EYE_THERE + QKV + "bias", f"(c n d 2) -> {TURNED}"),
                (EYE + "wo." + ENDS, EYE_THERE + "attn.proj." + ENDS),
                (EYE + "norm0." + ENDS, EYE_THERE + "norm1." + ENDS),
                (EYE + "norm1." + ENDS, EYE_THERE + "norm2." + ENDS),
                (EYE + "mlp.fc0." + ENDS, EYE_THERE + "mlp.fc1." + ENDS),
                (EYE + "mlp.fc1." + ENDS, EYE_THERE + "mlp.fc2." + ENDS),
                ("vision_tower.encoder.final_layernorm." + ENDS, "model.vision_tower.final_layernorm." + ENDS),
                ("vision_tower.patch_embed.proj." + ENDS, "model.vision_tower.patch_embed.proj." + ENDS),
                (
                    "vision_tower.patch_embed.pos_emb.weight",
                    "model.vision_tower.patch_embed.pos_emb.position_embeddings",
                ),
                ("mm_projector.proj.0." + ENDS, "model.mm_projector.in_proj." + ENDS),
                ("mm_projector.proj.2." + ENDS, "model.mm_projector.out_proj." + ENDS),
                ("mm_projector.pre_norm." + ENDS, "model.mm_projector.pre_norm." + ENDS),
            ),
        ),
        "nemo": Speech(
            at="model." + HUB,
            renames=(
                ("{x:language_model|vision_tower}.{rest:**}", "model.{x:language_model|vision_tower}.{rest:**}"),
                ("mm_projector.proj.0.{w:weight|bias}", "model.multi_modal_projector.linear_1.{w:weight|bias}"),
                ("mm_projector.proj.2.{w:weight|bias}", "model.multi_modal_projector.linear_2.{w:weight|bias}"),
                ("mm_projector.pre_norm.{rest:**}", "model.multi_modal_projector.pre_norm.{rest:**}"),
            ),
        ),
    },
    sizes={"n": ("vision_config.num_attention_heads", "vision_config.vt_num_attention_heads")},
    has=("kv_a_proj_with_mqa.weight",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

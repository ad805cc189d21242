"""Step 3.7: gate, up and down of all experts stacked apart."""

from ..layouts.family import Experts, Family, Speech

HUB = "model.layers.{layer}.moe."
NEMO = "model.language_model.layers.{layer}.moe."
DISK = {"gate_up": ("{g}.weight", "[g] e i h"), "down": ("{down}.weight", "e h i")}
MEMORY, SHARED = "model.language_model.layers.{layer}.", "model.layers.{layer}.share_expert."
EYE, EYE_THERE = "vision_model.transformer.resblocks.{layer}.", "model.vision_model.layers.{layer}."
ENDS = "{w:weight|bias}"
QKV = "self_attn.{c:q_proj|k_proj|v_proj}."
TURNED = "[c] (n 2 d)|(n 2 d)|(n d 2)"  # rotary pairs become halves in q and k
INSIDE = "{x:embed_tokens|layers|norm}.{rest:**}"

FAMILY = Family(
    name="step3p7",
    model_types=("step3p7",),
    experts=Experts(HUB + "experts.", disk=DISK),
    speaks={
        "hf": Speech(at=HUB),
        "hf-fused": Speech(
            at="model.language_model.layers.{layer}.mlp.experts.",
            renames=(
                (HUB + "gate.weight", MEMORY + "mlp.gate.weight"),
                (HUB + "router_bias", MEMORY + "mlp.gate.e_score_correction_bias"),
                (SHARED + "{w:*}.weight", MEMORY + "mlp.shared_experts.{w:*}.weight"),
                ("model." + INSIDE, "model.language_model." + INSIDE),
                (EYE + "attn.in_proj_weight", EYE_THERE + QKV + "weight", f"(c n d 2) h -> {TURNED} h"),
                (EYE + "attn.in_proj_bias", EYE_THERE + QKV + "bias", f"(c n d 2) -> {TURNED}"),
                (EYE + "attn.out_proj." + ENDS, EYE_THERE + "self_attn.out_proj." + ENDS),
                (EYE + "ls_1.gamma", EYE_THERE + "lambda_1"),
                (EYE + "ls_2.gamma", EYE_THERE + "lambda_2"),
                (EYE + "mlp.c_fc." + ENDS, EYE_THERE + "mlp.fc1." + ENDS),
                (EYE + "mlp.c_proj." + ENDS, EYE_THERE + "mlp.fc2." + ENDS),
                (EYE + "ln_1." + ENDS, EYE_THERE + "layernorm_before." + ENDS),
                (EYE + "ln_2." + ENDS, EYE_THERE + "layernorm_after." + ENDS),
                ("vision_model.conv1.weight", "model.vision_model.embeddings.patch_embedding.weight"),
                ("vision_model.positional_embedding", "model.vision_model.embeddings.position_embedding.weight"),
                ("vision_model.ln_pre." + ENDS, "model.vision_model.pre_layernorm." + ENDS),
                ("vision_model.vit_downsampler1." + ENDS, "model.vision_model.downsampler1." + ENDS),
                ("vision_model.vit_downsampler2." + ENDS, "model.vision_model.downsampler2." + ENDS),
                ("vit_large_projector." + ENDS, "model.multi_modal_projector." + ENDS),
            ),
        ),
        "nemo": Speech(
            at=NEMO + "experts.",
            renames=(
                (HUB + "gate.weight", NEMO + "gate.weight"),
                (HUB + "router_bias", NEMO + "gate.e_score_correction_bias"),
                ("model." + INSIDE, "model.language_model." + INSIDE),
                ("vision_model.{rest:**}", "model.vision_model.{rest:**}"),
                ("vit_large_projector.{rest:**}", "model.vit_large_projector.{rest:**}"),
            ),
        ),
    },
    sizes={"n": ("vision_config.num_attention_heads", "vision_config.heads")},
    has=("_bias",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

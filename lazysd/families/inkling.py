"""Inkling: w13 holds gate and up interleaved on disk, gate over up in memory; nearly every other key is renamed."""

from ..layouts.family import FUSED, Experts, Family, Rename, Speech

TESTED = "transformers 5.23, both forms saved and compared"
DISK = {"gate_up": ("w13_weight", "e (i g) h"), "down": ("w2_weight", "e h i")}
VLLM: dict[str, Speech | str] = {
    "vllm": "its files have w13_weight themselves, gate and up in turn, and what vLLM makes of it is not known"
}
HUB = "model.llm.layers.{layer}."
ATTN = "attn."
HEADS = (("wq_du", "q_proj"), ("wk_dv", "k_proj"), ("wv_dv", "v_proj"), ("wr_du", "r_proj"), ("wo_ud", "o_proj"))
HALVES = "(a g) b -> [g] a b"  # rows of gate and up in turn
SPLIT = "{g:gate_proj|up_proj}"
MEMORY = "model.language_model.layers.{layer}."
SHARED = HUB + "mlp.shared_experts."
AUDIO, EYE = "model.audio_tower.", "model.vision_tower."
BACK, BACKS, EYES = (
    "model.visual.backbone.",
    "model.visual.backbone.layers.{layer}.",
    "model.vision_tower.layers.{layer}.",
)


NEMO = {"gate_up": ("gate_and_up_projs", "e h (i g)"), "down": ("down_projs", "e i h")}
HELD = "_fp32_params.weight"


def for_nemo() -> tuple[Rename, ...]:
    """What NeMo renames of the first generation. Its adapter leaves MTP tensors out; here they keep their keys."""
    return (
        ("model.llm.embed.weight", "model.language_model.embed_tokens.weight"),
        ("model.llm.embed_norm.weight", "model.language_model.embed_norm.weight"),
        ("model.llm.norm.weight", "model.language_model.norm.weight"),
        ("model.llm.unembed.weight", "lm_head.weight"),
        ("model.audio.encoder.weight", AUDIO + "embed_audio_tokens.embed_audio_tokens.weight"),
        ("model.audio.final_norm.weight", AUDIO + "norm.weight"),
        ("model.visual.layers.linear_{n}.weight", EYE + "encoder_layers.{n}.projection.weight"),
        ("model.visual.layers.norm_{n}.weight", EYE + "encoder_layers.{n}.layer_norm.weight"),
        ("model.visual.final_norm.weight", EYE + "final_norm.weight"),
        *((HUB + ATTN + f"{a}.weight", MEMORY + f"self_attn.{b}.weight") for a, b in HEADS),
        (HUB + ATTN + "{x:q|k}_norm.weight", MEMORY + "self_attn.{x:q|k}_norm.weight"),
        (HUB + ATTN + "{x:k|v}_sconv.weight", MEMORY + "self_attn.{x:k|v}_sconv." + HELD),
        (HUB + ATTN + "rel_logits_proj.proj", MEMORY + "self_attn.rel_logits_proj.proj"),
        (HUB + "{x:attn|mlp}_sconv.weight", MEMORY + "{x:attn|mlp}_sconv." + HELD),
        (HUB + "attn_norm.weight", MEMORY + "input_layernorm.weight"),
        (HUB + "mlp_norm.weight", MEMORY + "post_attention_layernorm.weight"),
        (HUB + "mlp.gate.bias", MEMORY + "mlp.gate._fp32_params.e_score_correction_bias"),
        (HUB + "mlp.w13_dn.weight", MEMORY + "mlp.gate_up_proj", "a b -> b a"),
        (HUB + "mlp.w2_md.weight", MEMORY + "mlp.down_proj", "a b -> b a"),
        (SHARED + "shared_w13_weight", MEMORY + "mlp.shared_experts.gate_up_proj", "s a b -> s b a"),
        (SHARED + "shared_w2_weight", MEMORY + "mlp.shared_experts.down_proj", "s a b -> s b a"),
        (HUB + "{rest:**}", MEMORY + "{rest:**}"),
    )


def common(there: str) -> tuple[Rename, ...]:
    """What both generations rename in a layer."""
    return (
        ("model.llm.unembed.weight", "lm_head.weight"),
        (HUB + "mlp.gate.weight", there + "mlp.gate.weight"),
        (HUB + "mlp.gate.bias", there + "mlp.gate.e_score_correction_bias"),
        (HUB + "attn_norm.weight", there + "input_layernorm.weight"),
        (HUB + "mlp_norm.weight", there + "post_attention_layernorm.weight"),
        *((HUB + ATTN + f"{a}.weight", there + f"self_attn.{b}.weight") for a, b in HEADS),
        (HUB + ATTN + "{x:k|v}_sconv.weight", there + "self_attn.{x:k|v}_sconv.conv1d.weight"),
        (HUB + ATTN + "rel_logits_proj.proj", there + "self_attn.rel_logits_proj.proj"),
    )


def second(there: str) -> tuple[Rename, ...]:
    """What the second generation renames in its language model besides, below `there`."""
    layer = there + "layers.{layer}."
    return (
        *common(layer),
        ("model.llm.embed.weight", there + "embed_tokens.weight"),
        ("model.llm.embed_norm.weight", there + "embed_tokens.embed_norm.weight"),
        ("model.llm.attn_res.attn_queries.{layer}", there + "layers.{layer:+1}.attention_input.query"),
        ("model.llm.attn_res.mlp_queries.{layer}", there + "layers.{layer}.mlp_input.query"),
        ("model.llm.attn_res.output_query", there + "final_input.query"),
        (HUB + ATTN + "gate_attn.weight", layer + "self_attn.gate_proj.weight"),
        (HUB + ATTN + "attn_sink_proj.weight", layer + "self_attn.sink_proj.weight"),
        (
            HUB + ATTN + "{x:q_l2_clip|k_l2_clip|rel_l2_clip}.scale",
            layer + "self_attn.{x:q_l2_clip|k_l2_clip|rel_l2_clip}.scale",
        ),
        (HUB + "attn_sconv.weight", layer + "post_attention_convolution.conv1d.weight"),
        (HUB + "mlp_sconv.weight", layer + "post_mlp_convolution.conv1d.weight"),
        (HUB + ATTN + "{x:k|v}_sconv.static_w", layer + "self_attn.{x:k|v}_sconv.static_weight"),
        (HUB + ATTN + "{x:k|v}_sconv.weight_proj", layer + "self_attn.{x:k|v}_sconv.weight_proj.weight"),
        (HUB + "{x:q|k|v}_input_norm.weight", layer + "{x:q|k|v}_input_layernorm.weight"),
        ("model.llm.{rest:**}", there + "{rest:**}"),
    )


FAMILIES = (
    Family(
        name="inkling",
        model_types=("inkling_mm_model",),
        experts=Experts(HUB + "mlp.experts.", disk=DISK),
        speaks=VLLM
        | {
            "nemo": Speech(MEMORY + "mlp.experts.", form=NEMO, renames=for_nemo()),
            "hf-fused": Speech(
                MEMORY + "mlp.experts.",
                form=FUSED,
                renames=(
                    *common(MEMORY),
                    ("model.llm.embed.weight", "model.language_model.embed_tokens.weight"),
                    ("model.llm.embed_norm.weight", "model.language_model.embed_tokens.embed_norm.weight"),
                    (HUB + ATTN + "{x:q|k}_norm.weight", MEMORY + "self_attn.{x:q|k}_norm.weight"),
                    (HUB + "{x:attn|mlp}_sconv.weight", MEMORY + "{x:attn|mlp}_sconv.conv1d.weight"),
                    (HUB + "mlp.w13_dn.weight", MEMORY + f"mlp.{SPLIT}.weight", HALVES),
                    (HUB + "mlp.w2_md.weight", MEMORY + "mlp.down_proj.weight"),
                    (SHARED + "shared_w13_weight", MEMORY + f"mlp.shared_experts.{SPLIT}", "s (a g) b -> [g] s a b"),
                    (SHARED + "shared_w2_weight", MEMORY + "mlp.shared_experts.down_proj"),
                    ("model.llm.{rest:**}", "model.language_model.{rest:**}"),
                    ("model.audio.encoder.weight", AUDIO + "embed_audio_tokens.embed_audio_tokens.weight"),
                    ("model.audio.final_norm.weight", AUDIO + "norm.weight"),
                    ("model.visual.layers.linear_{n}.weight", EYE + "encoder_layers.{n}.projection.weight"),
                    ("model.visual.layers.norm_{n}.weight", EYE + "encoder_layers.{n}.layer_norm.weight"),
                    ("model.visual.{rest:**}", EYE + "{rest:**}"),
                ),
            ),
        },
        has=("mlp.gate.global_scale",),
        source="transformers 5.23 and nemo-automodel 0.7.0",
    ),
    Family(
        name="inkling_text",
        model_types=("inkling_text",),
        experts=Experts(disk=FUSED),
        has=("mlp.gate.global_scale",),
        source=TESTED,
    ),
    Family(
        name="inkling2",
        model_types=("inkling2",),
        experts=Experts(HUB + "mlp.experts.", disk=DISK),
        speaks=VLLM
        | {
            "hf-fused": Speech(
                MEMORY + "mlp.experts.",
                form=FUSED,
                renames=(
                    *second("model.language_model."),
                    (BACK + "embeddings.position_embedding", EYE + "embeddings.position_embedding.weight"),
                    (BACK + "ln_pre.{w:weight|bias}", EYE + "pre_layernorm.{w:weight|bias}"),
                    (BACKS + "ln_1.{w:weight|bias}", EYES + "layernorm_before.{w:weight|bias}"),
                    (BACKS + "ln_2.{w:weight|bias}", EYES + "layernorm_after.{w:weight|bias}"),
                    (BACKS + "mlp.c_fc.{w:weight|bias}", EYES + "mlp.fc1.{w:weight|bias}"),
                    (BACKS + "mlp.c_proj.{w:weight|bias}", EYES + "mlp.fc2.{w:weight|bias}"),
                    (BACKS + "ls_1.gamma", EYES + "lambda_1"),
                    (BACKS + "ls_2.gamma", EYES + "lambda_2"),
                    (BACK + "{rest:**}", EYE + "{rest:**}"),
                    ("model.visual.proj_in.{w:weight|bias}", EYE + "merger.linear_1.{w:weight|bias}"),
                    ("model.visual.proj_out.{w:weight|bias}", EYE + "merger.linear_2.{w:weight|bias}"),
                ),
            ),
        },
        has=("q_l2_clip.scale",),
        source=TESTED,
    ),
    Family(
        name="inkling2_text",
        model_types=("inkling2_text",),
        experts=Experts(HUB + "mlp.experts.", disk=DISK),
        speaks=VLLM
        | {
            "hf-fused": Speech("model.layers.{layer}.mlp.experts.", form=FUSED, renames=second("model.")),
        },
        has=("q_l2_clip.scale",),
        source=TESTED,
    ),
)

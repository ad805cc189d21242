"""Unlimited-OCR and DeepSeek-OCR 2: DeepSeek-V2's experts below a language model, with two vision encoders."""

from ..layouts.family import Experts, Family, Speech

SAM = "model.sam_model."
SAM_THERE = "model.vision_tower.sam_encoder."
CLIP = "model.vision_model."
CLIP_THERE = "model.vision_tower.vision_encoder."
ATTENTION = "transformer.layers.{layer}.self_attn."
ATTENTION_THERE = "encoder.layers.{layer}.self_attn."
INSIDE = "{x:embed_tokens|layers|norm}.{rest:**}"
SAM_RENAMES = (
    (SAM + "blocks.{layer}.norm1.{rest:**}", SAM_THERE + "layers.{layer}.layer_norm1.{rest:**}"),
    (SAM + "blocks.{layer}.norm2.{rest:**}", SAM_THERE + "layers.{layer}.layer_norm2.{rest:**}"),
    (SAM + "blocks.{rest:**}", SAM_THERE + "layers.{rest:**}"),
    (SAM + "patch_embed.proj.{rest:**}", SAM_THERE + "patch_embed.projection.{rest:**}"),
    (SAM + "neck.0.{rest:**}", SAM_THERE + "neck.conv1.{rest:**}"),
    (SAM + "neck.1.{rest:**}", SAM_THERE + "neck.layer_norm1.{rest:**}"),
    (SAM + "neck.2.{rest:**}", SAM_THERE + "neck.conv2.{rest:**}"),
    (SAM + "neck.3.{rest:**}", SAM_THERE + "neck.layer_norm2.{rest:**}"),
    (SAM + "net_2.{rest:**}", SAM_THERE + "proj.conv1.{rest:**}"),
    (SAM + "net_3.{rest:**}", SAM_THERE + "proj.conv2.{rest:**}"),
    (SAM + "{rest:**}", SAM_THERE + "{rest:**}"),
)
ENDS = (
    ("model.view_seperator", "model.view_separator"),
    ("model.projector.layers.{w:weight|bias}", "model.multi_modal_projector.{w:weight|bias}"),
    ("model." + INSIDE, "model.language_model." + INSIDE),
)
QWEN = "model.qwen2_model."
TESTED = "transformers 5.23, both forms saved and compared"
HUB, MEMORY = "model.layers.{layer}.mlp.experts.", "model.language_model.layers.{layer}.mlp.experts."

OCR = Family(
    name="unlimited_ocr",
    model_types=("unlimited_ocr",),
    experts=Experts(HUB),
    speaks={
        "hf-fused": Speech(
            at=MEMORY,
            renames=(
                (
                    CLIP + ATTENTION + "qkv_proj.weight",
                    CLIP_THERE + ATTENTION_THERE + "{c:q_proj|k_proj|v_proj}.weight",
                    "(c a) b -> [c] a b",
                ),
                (
                    CLIP + ATTENTION + "qkv_proj.bias",
                    CLIP_THERE + ATTENTION_THERE + "{c:q_proj|k_proj|v_proj}.bias",
                    "(c a) -> [c] a",
                ),
                (CLIP + "transformer.{rest:**}", CLIP_THERE + "encoder.{rest:**}"),
                (CLIP + "{rest:**}", CLIP_THERE + "{rest:**}"),
                *SAM_RENAMES,
                *ENDS,
            ),
        ),
    },
    has=("embeddings.class_embedding",),
    source=TESTED,
)

OCR2 = Family(
    name="deepseek_ocr2",
    model_types=("deepseek_ocr2",),
    experts=Experts(HUB),
    speaks={
        "hf-fused": Speech(
            at=MEMORY,
            renames=(
                *SAM_RENAMES,
                (QWEN + "model.model.{rest:**}", "model.vision_tower.vision_encoder.{rest:**}"),
                (QWEN + "query_{n}.weight", "model.vision_tower.query_{n}_resolution.weight"),
                *ENDS,
            ),
        ),
    },
    has=("attn.rel_pos_h",),
    lacks=("embeddings.class_embedding",),
    source=TESTED,
)

FAMILIES = (OCR, OCR2)

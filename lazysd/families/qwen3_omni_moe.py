"""Qwen3-Omni-MoE: the thinker, alone or with a talker that has experts of its own."""

from ..layouts.family import Experts, Family, Speech

THINKER = "thinker.model.layers.{layer}.mlp.experts."
TALKER = "talker.model.layers.{layer}.mlp.experts."
INSIDE = "{x:embed_tokens|layers|norm}.{rest:**}"
TOWERS = "{x:visual|audio_tower}.{rest:**}"

FAMILIES = (
    Family(
        name="qwen3_omni_moe",
        model_types=("qwen3_omni_moe",),
        experts=(
            Experts(THINKER, config="thinker_config.text_config"),
            Experts(TALKER, config="talker_config.text_config"),
        ),
        speaks={
            "hf-fused": Speech(
                at=("thinker.model.language_model.layers.{layer}.mlp.experts.", TALKER),
                renames=(
                    ("thinker.model." + INSIDE, "thinker.model.language_model." + INSIDE),
                    ("thinker." + TOWERS, "thinker.model." + TOWERS),
                ),
            ),
            "nemo": "nemo-automodel 0.7.0 reads the thinker alone (family qwen3_omni_moe_thinker)",
        },
        has=("audio_tower.conv2d1.weight",),
        source="transformers 5.23, both forms saved and compared",
    ),
    Family(
        name="qwen3_omni_moe_thinker",
        model_types=("qwen3_omni_moe_thinker", "qwen3_omni_moe_text"),
        experts=Experts("model.layers.{layer}.mlp.experts."),
        speaks={
            "hf-fused": Speech(
                at="model.language_model.layers.{layer}.mlp.experts.",
                renames=(("model." + INSIDE, "model.language_model." + INSIDE), (TOWERS, "model." + TOWERS)),
            ),
            "nemo": Speech(),
        },
        has=("audio_tower.conv2d1.weight",),
        source="transformers 5.23 and nemo-automodel 0.7.0",
    ),
)

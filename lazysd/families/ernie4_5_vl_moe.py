"""ERNIE 4.5 VL: text experts come first in one list, vision experts of another width after them."""

from ..layouts.family import Experts, Family, Speech

MLP = "model.layers.{layer}.mlp."
MEMORY = "model.language_model.layers.{layer}.mlp."
INSIDE = "{x:embed_tokens|layers|norm}.{rest:**}"
STATICS = "moe_statics.e_score_correction_bias"
RESAMPLER = "model.resampler_model.{x:spatial|temporal}_linear."

FAMILY = Family(
    name="ernie4_5_vl_moe",
    model_types=("ernie4_5_vl_moe",),
    experts=(
        Experts(MLP + "experts.", num=("moe_num_experts",), inner=("moe_intermediate_size.0",), config="text_config"),
        Experts(
            MLP + "experts.",
            num=("moe_num_experts",),
            first=("moe_num_experts",),
            inner=("moe_intermediate_size.1",),
            config="text_config",
        ),
    ),
    speaks={
        "hf-fused": Speech(
            at=(MEMORY + "text_moe.experts.", MEMORY + "vision_moe.experts."),
            renames=(
                (MLP + "gate.weight", MEMORY + "text_moe.gate.weight", "a b -> b a"),
                (MLP + "gate.weight_1", MEMORY + "vision_moe.gate.weight", "a b -> b a"),
                (MLP + STATICS, MEMORY + "{m:text_moe|vision_moe}.gate." + STATICS, "m a -> [m] 1 a"),
                (RESAMPLER + "0.{w:weight|bias}", RESAMPLER + "fc1.{w:weight|bias}"),
                (RESAMPLER + "2.{w:weight|bias}", RESAMPLER + "fc2.{w:weight|bias}"),
                (RESAMPLER + "3.{w:weight|bias}", RESAMPLER + "ln.{w:weight|bias}"),
                ("model.vision_model.{rest:**}", "model.vision_tower.{rest:**}"),
                ("model." + INSIDE, "model.language_model." + INSIDE),
            ),
        ),
        "vllm": "text and vision experts stand in one list, and which tensors vLLM makes of them is not known",
    },
    has=("resampler_model.after_norm.weight",),
    source="transformers 5.23, both forms saved and compared",
)

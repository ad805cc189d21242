"""Kimi K2.5: DeepSeek-V3's experts below a language model, with a vision tower."""

from ..layouts.family import Experts, Family, Speech

HUB = "language_model.model.layers.{layer}.mlp.experts."

FAMILY = Family(
    name="kimi_k25",
    model_types=("kimi_k25",),
    experts=Experts(HUB),
    speaks={
        "hf-fused": "transformers 5.23 reorders q and k of the vision tower's wqkv, but not v: no table says that yet",
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
    has=("kv_a_proj_with_mqa.weight",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

"""Aria: experts stacked and transposed under plain names on disk."""

from ..layouts.family import TRANSPOSED, Experts, Family, Speech

DISK = {"gate_up": ("fc1.weight", "e h (g i)"), "down": ("fc2.weight", "e i h")}
WIDTH = ("intermediate_size",)
TESTED = "transformers 5.23, both forms saved and compared"

FAMILIES = (
    Family(
        name="aria",
        model_types=("aria",),
        experts=Experts("language_model.model.layers.{layer}.mlp.experts.", disk=DISK, inner=WIDTH),
        speaks={
            "hf-fused": Speech(
                at="model.language_model.layers.{layer}.mlp.experts.",
                form=TRANSPOSED,
                renames=(
                    ("language_model.model.{rest:**}", "model.language_model.{rest:**}"),
                    ("language_model.lm_head.{rest:**}", "lm_head.{rest:**}"),
                    ("vision_tower.{rest:**}", "model.vision_tower.{rest:**}"),
                    ("multi_modal_projector.{rest:**}", "model.multi_modal_projector.{rest:**}"),
                ),
            )
        },
        has=("mlp.router.weight",),
        source=TESTED,
    ),
    Family(
        name="aria_text",
        model_types=("aria_text",),
        experts=Experts(disk=DISK, inner=WIDTH),
        speaks={"hf-fused": Speech(form=TRANSPOSED)},
        has=("mlp.router.weight",),
        source=TESTED,
    ),
)

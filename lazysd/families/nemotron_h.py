"""Nemotron-H / Nemotron 3: experts are not gated, layers are called mixers, and the hub's prefix is backbone."""

from ..layouts.family import Experts, Family, Speech

HUB = "backbone.layers.{layer}.mixer.experts."
MEMORY = "model.layers.{layer}.mixer.experts."
MTP = "mtp.layers.{layer}.mixer.experts."
STATE = "{w:A_log|D|dt_bias}"

FAMILY = Family(
    name="nemotron_h",
    model_types=("nemotron_h",),
    experts=(Experts(HUB, gate=None), Experts(MTP, gate=None)),
    speaks={
        "hf-fused": Speech(
            at=(MEMORY, MTP),
            form={"gate_up": ("up_proj", "e i h"), "down": ("down_proj", "e h i")},
            renames=(("backbone.{rest:**}", "model.{rest:**}"),),
        ),
        "nemo": Speech(
            at=(MEMORY, MTP),
            renames=(
                ("backbone.embeddings.weight", "model.embed_tokens.weight"),
                ("backbone.norm_f.weight", "model.norm.weight"),
                ("backbone.layers.{layer}.mixer." + STATE, "model.layers.{layer}.mixer._fp32_params." + STATE),
                ("mtp.layers.{layer}.mixer." + STATE, "mtp.layers.{layer}.mixer._fp32_params." + STATE),
                ("backbone.{rest:**}", "model.{rest:**}"),
            ),
        ),
    },
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

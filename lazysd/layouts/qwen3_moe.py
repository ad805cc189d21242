"""Qwen3-MoE: its layouts as tables. Source: transformers 5.23 and nemo-automodel 0.7, files they wrote."""

from __future__ import annotations

from . import lora
from .rule import Layout, LoraNames, Rule

FAMILY = "qwen3_moe"
EXPERTS = "{prefix}layers.{layer}.mlp.experts."
SIZES = {"e": ("num_experts", "num_local_experts")}

GATE_UP = EXPERTS + "{e}.{g:gate_proj|up_proj}.weight"
DOWN = EXPERTS + "{e}.down_proj.weight"
HF = (Rule(GATE_UP, GATE_UP, "[e g] i h -> [e g] i h"), Rule(DOWN, DOWN, "[e] h i -> [e] h i"))
LORA = LoraNames(EXPERTS)

LAYOUTS = (
    Layout(
        "hf",
        FAMILY,
        rules=HF,
        description="Hugging Face on disk: one tensor per expert and projection",
        sizes=SIZES,
        refuses=lora.NO_LORA,
    ),
    Layout(
        "hf-fused",
        FAMILY,
        rules=(
            Rule(GATE_UP, EXPERTS + "gate_up_proj", "[e g] i h -> e (g i) h"),
            Rule(DOWN, EXPERTS + "down_proj", "[e] h i -> e h i"),
        ),
        description="transformers 5 in memory: experts stacked, gate over up, not transposed",
        sizes=SIZES,
        refuses=lora.NO_LORA,
    ),
    Layout(
        "nemo",
        FAMILY,
        rules=(
            Rule(GATE_UP, EXPERTS + "gate_and_up_projs", "[e g] i h -> e h (g i)"),
            Rule(DOWN, EXPERTS + "down_projs", "[e] h i -> e i h"),
            *lora.native(LORA),
        ),
        description="NeMo Automodel: experts stacked and transposed, gate beside up; LoRA likewise",
        sizes=SIZES,
        lora=LORA,
        refuses=lora.REFUSES,
    ),
    *lora.peft_layouts(FAMILY, LORA, HF, SIZES),
)

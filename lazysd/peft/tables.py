"""LoRA on experts, as tables for any family with gate/up and down experts. The hub is NeMo's grouped tensors.

Source: nemo-automodel 0.7.0 (native names), peft 0.18.1 and 0.21.2 (ParamWrapper), files they wrote. PEFT 0.19.1
swapped the two factors of a 3-D parameter (huggingface/peft#3165); 0.19.0 still stores them as 0.18 does.

Rows of a lora_A are expert-major, columns of a lora_B are rank-major, in both generations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..errors import LayoutError
from ..layouts.derive import module_of
from ..layouts.family import FUSED, Family, Speech
from ..layouts.rule import Layout, Rule
from .names import LoraNames

NEWEST = "peft-0.19"
GENERATIONS = ("peft-0.18", NEWEST)
_NO_DORA = "DoRA rescales whole columns of a merged weight, which no layout of grouped experts can hold"
_NO_LORA = (
    'this layout has no form for LoRA on experts; convert to "peft" (the newest), "peft-0.19", "peft-0.18" or '
    '"peft-per-expert", which write base weights as "hf" does'
)
_FP8 = {
    "weight_scale_inv": "scales of FP8 blocks mean nothing without their weights; dequantise both first: --dtype bf16, "
    "lazysd.quantization.dequantize"
}
REFUSES = _FP8 | {
    "lora_magnitude_vector": _NO_DORA,
    "lora_magnitude_vector.weight": _NO_DORA,
    "lora_A.bias": "a bias on the LoRA of an expert has no place in a grouped layout",
    "lora_B.bias": "a bias on the LoRA of an expert has no place in a grouped layout",
}
NO_LORA = _FP8 | dict.fromkeys(("lora_gate_and_up_A", "lora_gate_and_up_B", "lora_down_A", "lora_down_B"), _NO_LORA)


def native(names: LoraNames) -> tuple[Rule, ...]:
    """NeMo's grouped tensors, which are the hub."""
    axes = {"gate_and_up_A": "e h r", "gate_and_up_B": "e r u", "down_A": "e i r", "down_B": "e r h"}
    keys = {names.experts + "lora_" + end: side for end, side in axes.items()}
    return tuple(Rule(key, key, f"{side} -> {side}") for key, side in keys.items())


def paramwrapper(names: LoraNames, generation: str) -> tuple[Rule, ...]:
    """PEFT's ParamWrapper: `base_layer.` is the inner wrapper, gate and up; without it the outer one, down."""
    at = names.experts
    inner, outer = at + "base_layer.lora_", at + "lora_"
    rows, columns = ("A", "B") if generation == "peft-0.19" else ("B", "A")
    return tuple(
        Rule(at + key, module + letter + ".weight", axes)
        for key, module, letter, axes in (
            ("lora_gate_and_up_A", inner, rows, "e h r -> (e r) h" if rows == "A" else "e h r -> h (r e)"),
            ("lora_gate_and_up_B", inner, columns, "e r u -> u (r e)" if rows == "A" else "e r u -> (e r) u"),
            ("lora_down_A", outer, rows, "e i r -> (e r) i" if rows == "A" else "e i r -> i (r e)"),
            ("lora_down_B", outer, columns, "e r h -> h (r e)" if rows == "A" else "e r h -> (e r) h"),
        )
    )


def per_expert(names: LoraNames, merged: bool = False) -> tuple[Rule, ...]:
    """A LoRA for each expert's projections.

    Gated experts share one lora_A, written twice: on the way back the two have to be bit-equal. The `merged` rules keep
    both instead, exactly, at twice the rank: A stacked, B on the diagonal.
    """
    at, down = names.experts, names.outer
    gate_up = "{g:" + "|".join(names.inner_words) + "}" if names.gated else names.inner_words[0]
    hub_a, hub_b = at + "lora_gate_and_up_A", at + "lora_gate_and_up_B"
    to_a, to_b = (at + "{e}." + gate_up + f".lora_{letter}.weight" for letter in "AB")
    if not names.gated:
        pair = (Rule(hub_a, to_a, "e h r -> [e] r h"), Rule(hub_b, to_b, "e r i -> [e] i r"))
    elif merged:
        pair = (
            Rule(hub_a, to_a, "e h (g r) -> [e g] r h"),
            Rule(hub_b, to_b, "e (g r) (g i) -> [e g] i r", diagonal="g"),
        )
    else:
        pair = (
            Rule(hub_a, to_a, "e h r -> [e g] r h", shared="g"),
            Rule(hub_b, to_b, "e r (g i) -> [e g] i r"),
        )
    return (
        *pair,
        Rule(at + "lora_down_A", at + "{e}." + down + ".lora_A.weight", "e i r -> [e] r i"),
        Rule(at + "lora_down_B", at + "{e}." + down + ".lora_B.weight", "e r h -> [e] h r"),
    )


def names_of(family: Family) -> LoraNames | None:
    """How adapters call a family's experts; None where transformers has them transposed, which no table here knows."""
    experts, module = family.stacks[0], module_of(family)
    fused = family.speaks.get("hf-fused")
    form = (fused.form if isinstance(fused, Speech) else None) or FUSED
    if isinstance(fused, str) or form is not FUSED or module != experts.at or len(family.stacks) > 1 or experts.num_of:
        return None
    words = (experts.up,) if experts.gate is None else (experts.gate, experts.up)
    return LoraNames(module, inner_words=words, outer=experts.down)


def with_native(layout: Layout, family: Family) -> Layout:
    """NeMo's layout with its grouped LoRA tensors."""
    names = names_of(family)
    if names is None:
        return replace(layout, refuses={**layout.refuses, **_FP8})
    return replace(layout, rules=layout.rules + native(names), companion=names, refuses={**layout.refuses, **REFUSES})


def without(layout: Layout, family: Family) -> Layout:
    """A layout of base weights, which says where LoRA can go."""
    return replace(layout, refuses={**layout.refuses, **NO_LORA})


def with_peft(layout: Layout, family: Family) -> Layout:
    """A PEFT layout: base weights as on disk, and LoRA in PEFT's form of that name."""
    names = names_of(family)
    if names is None:
        raise LayoutError(
            f"family {family.name!r} has no layout {layout.name!r}: transformers renames, transposes or multiplies its "
            "experts' module, and no table says what PEFT makes of it"
        )
    base: tuple[Rule, ...] = layout.rules
    merged: tuple[Rule, ...] = ()
    if layout.name == "peft-per-expert":
        base, merged = base + per_expert(names), base + per_expert(names, merged=True)
    else:
        base += paramwrapper(names, layout.name)
    return replace(layout, rules=base, merged=merged, companion=names, refuses={**layout.refuses, **REFUSES})


def peft_layouts(
    family: str,
    names: LoraNames,
    base: tuple[Rule, ...],
    sizes: Mapping[str, tuple[str, ...]],
) -> tuple[Layout, ...]:
    """The PEFT layouts of a family: base weights by the rules of its `hf` layout, LoRA in PEFT's forms."""
    about = "LoRA as PEFT {} stores it on stacked experts; base weights as hf"
    versions = {"peft-0.18": "0.18 to 0.19.0", "peft-0.19": "0.19.1 and later"}
    stacked = (
        Layout(
            name,
            family,
            base + paramwrapper(names, name),
            about.format(versions[name]),
            sizes=sizes,
            companion=names,
            refuses=REFUSES,
        )
        for name in GENERATIONS
    )
    apart = Layout(
        "peft-per-expert",
        family,
        base + per_expert(names),
        "LoRA for each expert's projections (transformers 4, NeMo's v4_compatible); base weights as hf",
        sizes=sizes,
        companion=names,
        merged=base + per_expert(names, merged=True),
        refuses=REFUSES,
    )
    return (*stacked, apart)

"""gpt-oss: experts stacked, transposed, gate and up interleaved, with biases; on disk as in memory."""

from ..layouts.family import INTERLEAVED, Experts, Family, Speech

LAYER = "{prefix}layers.{layer}.mlp."
EXPERTS = Experts(disk=INTERLEAVED, bias=True, inner=("intermediate_size",))

FAMILIES = (
    Family(
        name="gpt_oss",
        model_types=("gpt_oss",),
        experts=EXPERTS,
        speaks={
            "hf-fused": Speech(form=INTERLEAVED),
            "nemo": Speech(
                form={
                    **INTERLEAVED,
                    "gate_up": ("gate_and_up_projs", "e h (i g)"),
                    "down": ("down_projs", "e i h"),
                },
                renames=((LAYER + "router.{w:weight|bias}", LAYER + "gate.{w:weight|bias}"),),
            ),
        },
        source="transformers 5.23 and nemo-automodel 0.7.0",
    ),
    Family(
        name="openai_privacy_filter",
        model_types=("openai_privacy_filter",),
        experts=EXPERTS,
        speaks={"hf-fused": Speech(form=INTERLEAVED)},
        source="transformers 5.23, both forms saved and compared",
    ),
)

"""JetMoe: the MLP's experts stacked in two plain linear weights; the attention's, not gated, pass unchanged."""

from ..layouts.family import Experts, Family, Speech

DISK = {"gate_up": ("input_linear.weight", "e (g i) h"), "down": ("output_linear.weight", "e h i")}
MLP = "{prefix}layers.{layer}.mlp."

FAMILY = Family(
    name="jetmoe",
    model_types=("jetmoe",),
    experts=Experts(MLP + "experts.", disk=DISK, inner=("intermediate_size",)),
    speaks={
        "hf": Speech(at=MLP),
        "hf-fused": Speech(at=MLP, form=DISK),
        "vllm": "the experts of its attention are of no form that vLLM is known to have",
    },
    source="transformers 5.23, both forms saved and compared",
)

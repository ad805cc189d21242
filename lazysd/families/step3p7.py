"""Step 3.7: gate, up and down of all experts stacked apart."""

from ..layouts.family import Experts, Family, Speech

HUB = "model.layers.{layer}.moe."
NEMO = "model.language_model.layers.{layer}.moe."
DISK = {"gate_up": ("{g}.weight", "[g] e i h"), "down": ("{down}.weight", "e h i")}
INSIDE = "{x:embed_tokens|layers|norm}.{rest:**}"

FAMILY = Family(
    name="step3p7",
    model_types=("step3p7",),
    experts=Experts(HUB + "experts.", disk=DISK),
    speaks={
        "hf": Speech(at=HUB),
        "hf-fused": "transformers 5.23 reorders q and k of the vision tower, but not v: no table says that yet",
        "nemo": Speech(
            at=NEMO + "experts.",
            renames=(
                (HUB + "gate.weight", NEMO + "gate.weight"),
                (HUB + "router_bias", NEMO + "gate.e_score_correction_bias"),
                ("model." + INSIDE, "model.language_model." + INSIDE),
                ("vision_model.{rest:**}", "model.vision_model.{rest:**}"),
                ("vit_large_projector.{rest:**}", "model.vit_large_projector.{rest:**}"),
            ),
        ),
    },
    has=("_bias",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

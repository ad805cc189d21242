"""torchtitan's grouped experts."""

from ..layouts.family import Dialect

DIALECT = Dialect(
    "torchtitan",
    "torchtitan: gate (w1), up (w3) and down (w2) stacked apart, no prefix, names of its own",
    form={"gate_up": ("{g:w1_EFD|w3_EFD}", "[g] e i h"), "down": ("w2_EDF", "e h i")},
    at="layers.{layer}.moe.routed_experts.inner_experts.",
    everywhere=False,
    unless="torchtitan 0.3.0 has no state dict adapter for this family that a table can follow",
    source="torchtitan 0.3.0, its state dict adapters",
)

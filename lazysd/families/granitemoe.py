"""Granite MoE: experts stacked in two plain linear weights on disk."""

from ..layouts.family import Experts, Family, Speech

BLOCK = "{prefix}layers.{layer}.block_sparse_moe."
DISK = {"gate_up": ("input_linear.weight", "e (g i) h"), "down": ("output_linear.weight", "e h i")}

FAMILIES = tuple(
    Family(
        name=name,
        model_types=(name,),
        experts=Experts(BLOCK + "experts.", disk=DISK, inner=("intermediate_size",)),
        speaks={
            "hf": Speech(at=BLOCK),
            "hf-fused": Speech(renames=((BLOCK + "router.layer.weight", BLOCK + "router.weight"),)),
        },
        source="transformers 5.23, both forms saved and compared",
    )
    for name in ("granitemoe", "granitemoeshared", "granitemoehybrid")
)

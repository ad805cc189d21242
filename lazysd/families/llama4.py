"""Llama 4: experts stacked and transposed, on disk as in memory."""

from ..layouts.family import TRANSPOSED, Experts, Family, Speech

FAMILY = Family(
    name="llama4",
    model_types=("llama4", "llama4_text"),
    experts=Experts("{prefix}layers.{layer}.feed_forward.experts.", disk=TRANSPOSED, inner=("intermediate_size",)),
    speaks={"hf-fused": Speech(form=TRANSPOSED)},
    source="transformers 5.23, both forms saved and compared",
)

"""Jamba and LFM2-MoE: experts below feed_forward."""

from ..layouts.family import Experts, Family

AT = "{prefix}layers.{layer}.feed_forward.experts."
TESTED = "transformers 5.23, both forms saved and compared"

FAMILIES = (
    Family("jamba", ("jamba",), Experts(AT, inner=("intermediate_size",)), source=TESTED),
    Family("lfm2_moe", ("lfm2_moe",), Experts(AT, gate="w1", up="w3", down="w2"), source=TESTED),
)

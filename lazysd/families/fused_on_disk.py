"""Families whose files are transformers' form in memory: experts stacked, gate over up, not transposed."""

from ..layouts.family import FUSED, Experts, Family, Speech

TESTED = "transformers 5.23, both forms saved and compared"
LAYER = "{prefix}layers.{layer}."
POST_NORM = LAYER + "mlp.experts.post_expert_norm.weight"
SCALED = "nemo-automodel 0.7.0 multiplies per_expert_scale into down_proj, which has no way back"

FAMILIES = (
    Family(
        name="mistral4",
        model_types=("mistral4",),
        experts=Experts(disk=FUSED),
        has=("kv_a_proj_with_mqa.weight",),
        speaks={"nemo": "nemo-automodel 0.7.0 adds a router bias of zeros, which is no tensor of the checkpoint"},
        source=TESTED,
    ),
    Family(name="zaya", model_types=("zaya",), experts=Experts(disk=FUSED), has=("balancing_biases",), source=TESTED),
    Family(
        name="granitemoe_swa",
        model_types=("granitemoe_swa",),
        experts=Experts(LAYER + "block_sparse_moe.experts.", disk=FUSED, inner=("intermediate_size",)),
        source=TESTED,
    ),
    Family(
        name="gemma4",
        model_types=("gemma4", "gemma4_text"),
        experts=Experts(LAYER + "experts.", disk=FUSED),
        speaks={"nemo": SCALED},
        source=TESTED,
    ),
    Family(
        name="diffusion_gemma",
        model_types=("diffusion_gemma",),
        experts=Experts(LAYER + "experts.", disk=FUSED),
        speaks={"nemo": SCALED},
        source=TESTED,
    ),
    Family(
        name="muse_spark",
        model_types=("muse_spark", "muse_spark_text"),
        experts=Experts(disk=FUSED, hidden=("moe_hidden_size",)),
        speaks={"hf-fused": Speech(renames=((POST_NORM, POST_NORM),))},
        has=("mlp.experts.post_expert_norm.weight",),
        source=TESTED,
    ),
)

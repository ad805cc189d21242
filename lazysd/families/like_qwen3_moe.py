"""Families laid out exactly as Qwen3-MoE, in files and in transformers' memory: they differ in names of sizes alone."""

from ..dialects.megatron import COMMON, LATENT, PREDICTED, ROUTED, SHARED
from ..layouts.family import Experts, Family, Speech

MOE = ("moe_intermediate_size",)
PLAIN = ("intermediate_size",)  # these have no width of their own for experts
EITHER = ("moe_intermediate_size.0", "moe_intermediate_size", "intermediate_size")
MLA = ("kv_a_proj_with_mqa.weight",)
CORRECTED = ("e_score_correction_bias",)
UNMAPPED = "Megatron-Bridge has no mapping of this model, so that its names in Megatron-Core are not known"
TESTED = "transformers 5.23: tiny models built, both forms saved and compared"


def alike(
    name: str,
    *more: str,
    inner: tuple[str, ...] = MOE,
    has: tuple[str, ...] = (),
    lacks: tuple[str, ...] = (),
    **speaks: Speech | str,
) -> Family:
    """A family whose table is Qwen3-MoE's."""
    return Family(name, (name, *more), Experts(inner=inner), speaks, has=has, lacks=lacks, source=TESTED)


FAMILIES = (
    alike("afmoe", has=("mlp.router.gate.weight",)),
    alike("beam", has=CORRECTED),
    alike("cohere2_moe", inner=PLAIN, lacks=("post_attention_layernorm.weight",)),
    alike("deepseek_v2", has=MLA, nemo=Speech(), megatron=Speech(renames=(*LATENT, *ROUTED, *SHARED))),
    alike("deepseek_v32", has=MLA, nemo=Speech()),
    alike("dots1", has=CORRECTED, megatron=UNMAPPED),
    alike("flex_olmo", inner=PLAIN, has=("post_feedforward_layernorm.weight",)),
    alike(
        "glm4_moe",
        has=CORRECTED,
        nemo=Speech(),
        megatron=Speech(renames=(*COMMON, *ROUTED, *SHARED, *PREDICTED)),
    ),
    alike(
        "glm4_moe_lite",
        has=MLA,
        nemo=Speech(),
        megatron=Speech(renames=(*LATENT, *ROUTED, *SHARED, *PREDICTED)),
    ),
    alike("glm4v_moe", "glm4v_moe_text", has=CORRECTED),
    alike("glm_moe_dsa", has=MLA, nemo=Speech()),
    alike("hunyuan_v1_moe", inner=EITHER, has=("gate.wg.weight",)),
    alike("mellum"),
    alike("olmoe", inner=PLAIN, megatron=Speech()),
    alike("qwen2_moe", has=("shared_expert_gate.weight",), nemo=Speech(), megatron=UNMAPPED),
    alike("solar_open", has=CORRECTED),
)

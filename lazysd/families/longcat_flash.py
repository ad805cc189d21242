"""LongCat-Flash: zero experts have rows of gate and up, but no down."""

from ..layouts.family import Experts, Family

ROUTED = ("n_routed_experts",)
WHY = "zero experts have gate and up but no down, and no program is known that stacks them so"

FAMILY = Family(
    name="longcat_flash",
    model_types=("longcat_flash",),
    experts=Experts(
        num=ROUTED,
        num_of={"gate_up": ("n_routed_experts + zero_expert_num",)},
        inner=("expert_ffn_hidden_size",),
    ),
    speaks={"vllm": WHY},
    has=("router.classifier.weight",),
    source="transformers 5.23, both forms saved and compared",
)

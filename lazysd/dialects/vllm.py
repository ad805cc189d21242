"""vLLM's and SGLang's fused experts at run time."""

from ..layouts.family import Dialect

DIALECT = Dialect(
    "vllm",
    "vLLM and SGLang at run time: w13 holds gate over up, w2 down, experts stacked",
    form={
        "gate_up": ("w13_weight", "e (g i) h"),
        "down": ("w2_weight", "e h i"),
        "gate_up_bias": ("w13_bias", "e (g i)"),
        "down_bias": ("w2_bias", "e h"),
    },
    source="vLLM fused_moe, SGLang unquantised experts (read, not run)",
)

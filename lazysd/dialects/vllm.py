"""vLLM's and SGLang's fused experts at run time."""

from ..layouts.family import Dialect
from ..layouts.rule import Rule

LAYER = "{prefix}layers.{layer}."
QKV, BOTH = "self_attn.{p:q_proj|k_proj|v_proj}.", "mlp.{g:gate_proj|up_proj}."

DIALECT = Dialect(
    "vllm",
    "vLLM and SGLang at run time: w13 holds gate over up, w2 down, experts stacked",
    form={
        "gate_up": ("w13_weight", "e (g i) h"),
        "down": ("w2_weight", "e h i"),
        "gate_up_bias": ("w13_bias", "e (g i)"),
        "down_bias": ("w2_bias", "e h"),
    },
    dense=(
        Rule(LAYER + QKV + "weight", LAYER + "self_attn.qkv_proj.weight", "[p] q|k|v h -> (q + k + v) h"),
        Rule(LAYER + QKV + "bias", LAYER + "self_attn.qkv_proj.bias", "[p] q|k|v -> (q + k + v)"),
        Rule(LAYER + BOTH + "weight", LAYER + "mlp.gate_up_proj.weight", "[g] f h -> (g f) h"),
        Rule(LAYER + BOTH + "bias", LAYER + "mlp.gate_up_proj.bias", "[g] f -> (g f)"),
    ),
    sizes={
        "q": ("num_attention_heads * head_dim", "hidden_size"),
        "k": (
            "num_key_value_heads * head_dim",
            "hidden_size * num_key_value_heads / num_attention_heads",
            "num_attention_heads * head_dim",
            "hidden_size",
        ),
        "v": (
            "num_key_value_heads * head_dim",
            "hidden_size * num_key_value_heads / num_attention_heads",
            "num_attention_heads * head_dim",
            "hidden_size",
        ),
        "f": ("intermediate_size",),
    },
    source="vLLM fused_moe, SGLang unquantised experts (read, not run)",
)

"""Megatron-Core: TEGroupedMLP's experts, q, k and v interleaved group by group, gate over up."""

from ..layouts.family import Dialect
from ..layouts.rule import Rule

HF, MCORE = "model.layers.{layer}.", "decoder.layers.{layer}."
QKV = "{p:q_proj|k_proj|v_proj}"
GROUPS = "(n a|b|c)"  # n groups of queries, each with a rows of q, b of k, c of v

COMMON = (
    ("model.embed_tokens.weight", "embedding.word_embeddings.weight"),
    ("model.norm.weight", "decoder.final_layernorm.weight"),
    ("lm_head.weight", "output_layer.weight"),
    (HF + "input_layernorm.weight", MCORE + "self_attention.linear_qkv.layer_norm_weight"),
    (HF + "self_attn.o_proj.{w:weight|bias}", MCORE + "self_attention.linear_proj.{w:weight|bias}"),
    (HF + "self_attn.q_norm.weight", MCORE + "self_attention.q_layernorm.weight"),
    (HF + "self_attn.k_norm.weight", MCORE + "self_attention.k_layernorm.weight"),
    Rule(
        HF + f"self_attn.{QKV}.weight",
        MCORE + "self_attention.linear_qkv.weight",
        f"[p] {GROUPS} h -> (n (a + b + c)) h",
    ),
    Rule(HF + f"self_attn.{QKV}.bias", MCORE + "self_attention.linear_qkv.bias", f"[p] {GROUPS} -> (n (a + b + c))"),
)
DIALECT = Dialect(
    "megatron",
    "Megatron-Core: TEGroupedMLP's experts one by one, gate over up; q, k and v interleaved by groups",
    form={
        "gate_up": ("linear_fc1.weight{e}", "[e] (g i) h"),
        "down": ("linear_fc2.weight{e}", "[e] h i"),
        "gate_up_bias": ("linear_fc1.bias{e}", "[e] (g i)"),
        "down_bias": ("linear_fc2.bias{e}", "[e] h"),
    },
    at=MCORE + "mlp.experts.",
    renames=(
        *COMMON,
        (HF + "post_attention_layernorm.weight", MCORE + "pre_mlp_layernorm.weight"),
        (HF + "mlp.gate.weight", MCORE + "mlp.router.weight"),
    ),
    dense=(
        *COMMON,
        (HF + "post_attention_layernorm.weight", MCORE + "mlp.linear_fc1.layer_norm_weight"),
        (HF + "mlp.down_proj.{w:weight|bias}", MCORE + "mlp.linear_fc2.{w:weight|bias}"),
        Rule(HF + "mlp.{g:gate_proj|up_proj}.weight", MCORE + "mlp.linear_fc1.weight", "[g] f h -> (g f) h"),
        Rule(HF + "mlp.{g:gate_proj|up_proj}.bias", MCORE + "mlp.linear_fc1.bias", "[g] f -> (g f)"),
    ),
    everywhere=False,
    unless="what Megatron-Core calls its other keys is not in any table",
    refuses={
        HF + "mlp.{w:gate_proj|up_proj|down_proj}.{x:*}": "in Megatron-Core the norm of a dense layer has another name "
        "than that of a layer with experts, and this table has one"
    },
    sizes={
        "n": ("num_key_value_heads", "num_attention_heads"),
        "a": (
            "num_attention_heads * head_dim / num_key_value_heads",
            "hidden_size / num_key_value_heads",
            "head_dim",
            "hidden_size / num_attention_heads",
        ),
        "b": ("head_dim", "hidden_size / num_attention_heads"),
        "c": ("head_dim", "hidden_size / num_attention_heads"),
        "f": ("intermediate_size",),
    },
    source="Megatron-Bridge's mappings and Megatron-Core's parameter names (read, not run)",
)

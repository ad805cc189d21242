"""Megatron-Core: TEGroupedMLP's experts, q, k and v interleaved group by group, gate over up."""

from dataclasses import replace

from ..layouts.family import Dialect, Family
from ..layouts.rule import Layout, Rule

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
ROUTER, DENSE = HF + "mlp.gate.weight", HF + "mlp.down_proj.weight"  # what layers with and without experts have
NORM = HF + "post_attention_layernorm.weight"
BOTH = "{g:gate_proj|up_proj}.weight"
ROUTED = (  # of layers with experts, and of the dense layers among them
    Rule(NORM, MCORE + "pre_mlp_layernorm.weight", rename=True, where=ROUTER),
    (ROUTER, MCORE + "mlp.router.weight"),
    Rule(NORM, MCORE + "mlp.linear_fc1.layer_norm_weight", rename=True, where=DENSE),
    Rule(HF + "mlp." + BOTH, MCORE + "mlp.linear_fc1.weight", "[g] s h -> (g s) h", rename=True, where=DENSE),
    Rule(DENSE, MCORE + "mlp.linear_fc2.weight", rename=True, where=DENSE),
)
SHARED = (  # experts that every token sees, and what corrects the router
    (HF + "mlp.gate.e_score_correction_bias", MCORE + "mlp.router.expert_bias"),
    Rule(
        HF + "mlp.shared_experts." + BOTH,
        MCORE + "mlp.shared_experts.linear_fc1.weight",
        "[g] s h -> (g s) h",
        rename=True,
    ),
    (HF + "mlp.shared_experts.down_proj.weight", MCORE + "mlp.shared_experts.linear_fc2.weight"),
)
ATTN, THERE = HF + "self_attn.", MCORE + "self_attention."
LATENT = (  # multi-head latent attention; q_proj stands alone where there is no q_lora_rank
    *COMMON[:3],
    (HF + "input_layernorm.weight", MCORE + "input_layernorm.weight"),
    (ATTN + "o_proj.weight", THERE + "linear_proj.weight"),
    (ATTN + "q_proj.weight", THERE + "linear_q_proj.weight"),
    (ATTN + "q_a_proj.weight", THERE + "linear_q_down_proj.weight"),
    (ATTN + "q_a_layernorm.weight", THERE + "linear_q_up_proj.layer_norm_weight"),
    (ATTN + "q_b_proj.weight", THERE + "linear_q_up_proj.weight"),
    (ATTN + "kv_a_proj_with_mqa.weight", THERE + "linear_kv_down_proj.weight"),
    (ATTN + "kv_a_layernorm.weight", THERE + "linear_kv_up_proj.layer_norm_weight"),
    (ATTN + "kv_b_proj.weight", THERE + "linear_kv_up_proj.weight"),
)
MTP_HF, MTP = "model.layers.{layer:+num_hidden_layers}.", "mtp.layers.{layer}."
PREDICTED = (  # what a layer that predicts further tokens has beside a layer's own; both programs share the embeddings
    (MTP_HF + "{w:enorm|hnorm|eh_proj}.weight", MTP + "{w:enorm|hnorm|eh_proj}.weight"),
    (MTP_HF + "shared_head.norm.weight", MTP + "final_layernorm.weight"),
)


def with_predicted(layout: Layout, family: Family) -> Layout:
    """A layout with its rules for layers said of MTP layers too, where its family has those: numbered from 0 on."""
    if not any(rule.to.startswith(MTP) for rule in layout.rules):
        return layout

    def there(text: str) -> str:
        return text.replace(HF, MTP_HF)

    more = tuple(
        replace(rule, hf=there(rule.hf), where=there(rule.where), to=rule.to.replace(MCORE, MTP + "mtp_model_layer."))
        for rule in layout.rules
        if rule.hf.startswith(HF) and rule.to.startswith(MCORE)
    )
    return replace(layout, rules=layout.rules + more)


UNNUMBERED = "MTP layers follow the others, and num_hidden_layers of config.json, which says how many those are, "
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
        *ROUTED,
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
        NORM: "its name in Megatron-Core depends on whether the layer has experts, and neither a router nor a "
        "down_proj stands in it",
        HF + "mlp.{w:gate_proj|up_proj}.{x:*}": "a dense layer has gate, up and down together",
        HF + "{w:enorm|hnorm|eh_proj}.weight": UNNUMBERED + "is not known or larger than this layer's number; or else "
        "no table says what Megatron-Core makes of this family's",
        MTP + "{rest:**}": UNNUMBERED + "is not known; or else it is no name of an MTP layer in Megatron-Core: what is "
        "in one is called mtp_model_layer (older versions, and its own checkpoints: transformer_layer)",
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
    complete=with_predicted,
    source="Megatron-Bridge's mappings and Megatron-Core's parameter names (read, not run)",
)

"""Qwen3-MoE."""

from ..layouts.family import Experts, Family, Speech

HF = "model.layers.{layer}."
TITAN = "layers.{layer}."

FAMILY = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    experts=Experts(),
    speaks={
        "nemo": Speech(),
        "torchtitan": Speech(
            renames=(
                ("model.embed_tokens.weight", "tok_embeddings.weight"),
                (HF + "self_attn.q_proj.weight", TITAN + "attention.qkv_linear.wq.weight"),
                (HF + "self_attn.k_proj.weight", TITAN + "attention.qkv_linear.wk.weight"),
                (HF + "self_attn.v_proj.weight", TITAN + "attention.qkv_linear.wv.weight"),
                (HF + "self_attn.o_proj.weight", TITAN + "attention.wo.weight"),
                (HF + "self_attn.{w:q_norm|k_norm}.weight", TITAN + "attention.{w:q_norm|k_norm}.weight"),
                (HF + "mlp.gate_proj.weight", TITAN + "feed_forward.w1.weight"),
                (HF + "mlp.up_proj.weight", TITAN + "feed_forward.w3.weight"),
                (HF + "mlp.down_proj.weight", TITAN + "feed_forward.w2.weight"),
                (HF + "mlp.gate.weight", TITAN + "moe.router.gate.weight"),
                (HF + "input_layernorm.weight", TITAN + "attention_norm.weight"),
                (HF + "post_attention_layernorm.weight", TITAN + "ffn_norm.weight"),
                ("model.norm.weight", "norm.weight"),
            )
        ),
        "megatron": Speech(),
    },
    source="transformers 5.23 and nemo-automodel 0.7.0, files they wrote",
)

"""DeepSeek-V3, R1, and what is published as such (Kimi-K2, Moonlight). MTP layers follow the last layer in number."""

from ..dialects.megatron import LATENT, PREDICTED, ROUTED, SHARED
from ..layouts.family import Experts, Family, Speech

HF = "model.layers.{layer}."
TITAN = "layers.{layer}."

FAMILY = Family(
    name="deepseek_v3",
    model_types=("deepseek_v3", "kimi_k2"),
    experts=Experts(),
    speaks={
        "nemo": Speech(),
        "megatron": Speech(renames=(*LATENT, *ROUTED, *SHARED, *PREDICTED)),
        "torchtitan": Speech(
            renames=(
                ("model.embed_tokens.weight", "tok_embeddings.weight"),
                (HF + "self_attn.kv_a_proj_with_mqa.weight", TITAN + "attention.wkv_a.weight"),
                (HF + "self_attn.kv_a_layernorm.weight", TITAN + "attention.kv_norm.weight"),
                (HF + "self_attn.kv_b_proj.weight", TITAN + "attention.wkv_b.weight"),
                (HF + "self_attn.q_a_proj.weight", TITAN + "attention.wq_a.weight"),
                (HF + "self_attn.q_a_layernorm.weight", TITAN + "attention.q_norm.weight"),
                (HF + "self_attn.q_b_proj.weight", TITAN + "attention.wq_b.weight"),
                (HF + "self_attn.q_proj.weight", TITAN + "attention.wq.weight"),
                (HF + "self_attn.o_proj.weight", TITAN + "attention.wo.weight"),
                (HF + "mlp.gate_proj.weight", TITAN + "feed_forward.w1.weight"),
                (HF + "mlp.up_proj.weight", TITAN + "feed_forward.w3.weight"),
                (HF + "mlp.down_proj.weight", TITAN + "feed_forward.w2.weight"),
                (HF + "mlp.shared_experts.gate_proj.weight", TITAN + "moe.shared_experts.w1.weight"),
                (HF + "mlp.shared_experts.up_proj.weight", TITAN + "moe.shared_experts.w3.weight"),
                (HF + "mlp.shared_experts.down_proj.weight", TITAN + "moe.shared_experts.w2.weight"),
                (HF + "mlp.gate.weight", TITAN + "moe.router.gate.weight"),
                (HF + "mlp.gate.e_score_correction_bias", TITAN + "moe.expert_bias_E"),
                (HF + "input_layernorm.weight", TITAN + "attention_norm.weight"),
                (HF + "post_attention_layernorm.weight", TITAN + "ffn_norm.weight"),
                (HF + "{w:enorm|hnorm|eh_proj}.weight", TITAN + "{w:enorm|hnorm|eh_proj}.weight"),
                (HF + "shared_head.norm.weight", TITAN + "mtp_norm.weight"),
                ("model.norm.weight", "norm.weight"),
            ),
        ),
    },
    has=("kv_a_proj_with_mqa.weight",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

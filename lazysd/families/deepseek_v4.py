"""DeepSeek-V4: names of its own on disk, with `model.` where transformers saves them and without it on the hub."""

from ..layouts.family import Experts, Family, Speech

LAYER = "{prefix}layers.{layer}."
ATTN, THERE = LAYER + "attn.", LAYER + "self_attn."
FFN, MLP = LAYER + "ffn.", LAYER + "mlp."
INDEXER = THERE + "compressor.indexer."
HYPER = "{w:fn|base|scale}"

FAMILY = Family(
    name="deepseek_v4",
    model_types=("deepseek_v4",),
    experts=Experts(FFN + "experts.", gate="w1", up="w3", down="w2"),
    speaks={
        "hf-fused": Speech(
            MLP + "experts.",
            renames=(
                ("embed.weight", "embed_tokens.weight"),
                ("head.weight", "lm_head.weight"),
                ("hc_head_" + HYPER, "hc_head.hc_" + HYPER),
                (LAYER + "attn_norm.weight", LAYER + "input_layernorm.weight"),
                (LAYER + "ffn_norm.weight", LAYER + "post_attention_layernorm.weight"),
                (LAYER + "hc_{x:attn|ffn}_" + HYPER, LAYER + "{x:attn|ffn}_hc." + HYPER),
                (ATTN + "attn_sink", THERE + "sinks"),
                (ATTN + "norm.weight", THERE + "kv_norm.weight"),
                (ATTN + "q_norm.weight", THERE + "q_a_norm.weight"),
                (ATTN + "wq_a.weight", THERE + "q_a_proj.weight"),
                (ATTN + "wq_b.weight", THERE + "q_b_proj.weight"),
                (ATTN + "wkv.weight", THERE + "kv_proj.weight"),
                (ATTN + "wo_{x:a|b}.weight", THERE + "o_{x:a|b}_proj.weight"),
                (ATTN + "compressor.ape", THERE + "compressor.position_bias"),
                (ATTN + "compressor.norm.weight", THERE + "compressor.kv_norm.weight"),
                (ATTN + "compressor.wgate.weight", THERE + "compressor.gate_proj.weight"),
                (ATTN + "compressor.wkv.weight", THERE + "compressor.kv_proj.weight"),
                (ATTN + "indexer.compressor.ape", INDEXER + "position_bias"),
                (ATTN + "indexer.compressor.norm.weight", INDEXER + "kv_norm.weight"),
                (ATTN + "indexer.compressor.wgate.weight", INDEXER + "gate_proj.weight"),
                (ATTN + "indexer.compressor.wkv.weight", INDEXER + "kv_proj.weight"),
                (ATTN + "indexer.weights_proj.weight", INDEXER + "scorer.weights_proj.weight"),
                (ATTN + "indexer.wq_b.weight", INDEXER + "q_b_proj.weight"),
                (FFN + "gate.{w:weight|tid2eid}", MLP + "gate.{w:weight|tid2eid}"),
                (FFN + "gate.bias", MLP + "gate.e_score_correction_bias"),
                (FFN + "shared_experts.w1.weight", MLP + "shared_experts.gate_proj.weight"),
                (FFN + "shared_experts.w3.weight", MLP + "shared_experts.up_proj.weight"),
                (FFN + "shared_experts.w2.weight", MLP + "shared_experts.down_proj.weight"),
            ),
        ),
    },
    has=("gate.tid2eid",),
    source="transformers 5.23, both forms saved and compared",
)

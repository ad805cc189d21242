"""DeepSeek-V4: names of its own on disk, with `model.` where transformers saves them and without it on the hub."""

from ..layouts.family import Experts, Family, Rename, Speech
from ..layouts.rule import Rule

LAYER = "{prefix}layers.{layer}."
ATTN, THERE = LAYER + "attn.", LAYER + "self_attn."
FFN, MLP = LAYER + "ffn.", LAYER + "mlp."
INDEXER = THERE + "compressor.indexer."
HYPER = "{w:fn|base|scale}"

PROJECTIONS = (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"))
SAVED = "nemo-automodel 0.7.0 reads the names of the hub, without `model.`, and not those that transformers saves"


def in_nemo(hub: str, there: str) -> tuple[Rename, ...]:
    """What NeMo calls the tensors of a layer."""
    attn, below = hub + "attn.", there + "self_attn."
    return (
        (hub + "attn_norm.weight", there + "input_layernorm.weight"),
        (hub + "ffn_norm.weight", there + "post_attention_layernorm.weight"),
        (attn + "attn_sink", below + "sinks_param.weight"),
        (attn + "indexer.compressor.norm.weight", below + "compressor.indexer.kv_norm.weight"),
        (attn + "indexer.compressor.ape", below + "compressor.indexer.ape_param.weight"),
        (attn + "indexer.compressor.{x:wgate|wkv}.weight", below + "compressor.indexer.{x:wgate|wkv}.weight"),
        (attn + "indexer.{rest:**}", below + "compressor.indexer.{rest:**}"),
        (attn + "compressor.norm.weight", below + "compressor.kv_norm.weight"),
        (attn + "compressor.ape", below + "compressor.ape_param.weight"),
        (attn + "{rest:**}", below + "{rest:**}"),
        (hub + "ffn.gate.bias", there + "mlp.gate.e_score_correction_bias"),
        (hub + "ffn.gate.{w:weight|tid2eid}", there + "mlp.gate.{w:weight|tid2eid}"),
        *((hub + f"ffn.shared_experts.{a}.weight", there + f"mlp.shared_experts.{b}.weight") for a, b in PROJECTIONS),
        (hub + "hc_{x:attn|ffn}_" + HYPER, there + "{x:attn|ffn}_hc." + HYPER),
    )


FOR_NEMO = (
    ("embed.weight", "model.embed_tokens.weight"),
    ("norm.weight", "model.norm.weight"),
    ("head.weight", "lm_head.weight"),
    ("hc_head_" + HYPER, "model.hc_head.hc_" + HYPER),
    ("vision.{rest:**}", "model.vision.{rest:**}"),
    ("aligner.{rest:**}", "model.aligner.{rest:**}"),
    *((name, "model." + name) for name in ("image_start", "image_end", "image_newline", "image_pad")),
    *in_nemo("layers.{layer}.", "model.layers.{layer}."),
    *in_nemo("mtp.{layer}.", "mtp.layers.{layer}."),
    ("mtp.{layer}.hc_head_" + HYPER, "mtp.layers.{layer}.hc_head.hc_" + HYPER),
    ("mtp.{layer}.{rest:**}", "mtp.layers.{layer}.{rest:**}"),
    Rule(
        "mtp.{layer}.ffn.experts.{e}.{g:w1|w3}.weight",
        "mtp.layers.{layer}.mlp.experts.gate_and_up_projs",
        "[e g] i h -> e h (g i)",
    ),
    Rule(
        "mtp.{layer}.ffn.experts.{e}.w2.weight",
        "mtp.layers.{layer}.mlp.experts.down_projs",
        "[e] h i -> e i h",
    ),
)
FAMILY = Family(
    name="deepseek_v4",
    model_types=("deepseek_v4",),
    experts=Experts(FFN + "experts.", gate="w1", up="w3", down="w2"),
    speaks={
        "nemo": Speech(
            "model.layers.{layer}.mlp.experts.",
            renames=FOR_NEMO,
            prefix="",
            refuses={"model.layers.{layer}.{x:attn|ffn}.{rest:**}": SAVED},
        ),
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
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

"""gpt-oss: experts stacked, transposed, gate and up interleaved, with biases; on disk as in memory."""

from ..layouts.family import INTERLEAVED, Experts, Family, Speech

LAYER = "{prefix}layers.{layer}.mlp."
HF = "model.layers.{layer}."
TITAN = "layers.{layer}."
EXPERTS = Experts(disk=INTERLEAVED, bias=True, inner=("intermediate_size",))

FAMILIES = (
    Family(
        name="gpt_oss",
        model_types=("gpt_oss",),
        experts=EXPERTS,
        speaks={
            "hf-fused": Speech(form=INTERLEAVED),
            "nemo": Speech(
                form={
                    **INTERLEAVED,
                    "gate_up": ("gate_and_up_projs", "e h (i g)"),
                    "down": ("down_projs", "e i h"),
                },
                renames=((LAYER + "router.{w:weight|bias}", LAYER + "gate.{w:weight|bias}"),),
            ),
            "vllm": Speech(
                form={
                    "gate_up": ("w13_weight", "e (i g) h"),
                    "down": ("w2_weight", "e h i"),
                    "gate_up_bias": ("w13_bias", "e (i g)"),
                    "down_bias": ("w2_bias", "e h"),
                },
                description="vLLM at run time: w13 holds gate and up row by row, w2 down, experts stacked",
                source="vLLM 0.11, model_executor/models/gpt_oss.py, whose swigluoai takes turns (read, not run)",
            ),
            "torchtitan": Speech(
                source="torchtitan 0.3.0, the shapes that its reader of MXFP4 gives (read, not run)",
                form={
                    "gate_up": ("mlp1_weight", "e (i g) h"),
                    "down": ("mlp2_weight", "e h i"),
                    "gate_up_bias": ("mlp1_bias", "e (i g)"),
                    "down_bias": ("mlp2_bias", "e h"),
                },
                renames=(
                    ("model.embed_tokens.weight", "tok_embeddings.weight"),
                    (HF + "self_attn.q_proj.{w:weight|bias}", TITAN + "attention.qkv_linear.wq.{w:weight|bias}"),
                    (HF + "self_attn.k_proj.{w:weight|bias}", TITAN + "attention.qkv_linear.wk.{w:weight|bias}"),
                    (HF + "self_attn.v_proj.{w:weight|bias}", TITAN + "attention.qkv_linear.wv.{w:weight|bias}"),
                    (HF + "self_attn.o_proj.{w:weight|bias}", TITAN + "attention.wo.{w:weight|bias}"),
                    (HF + "self_attn.sinks", TITAN + "attention.sinks"),
                    (HF + "mlp.router.{w:weight|bias}", TITAN + "moe.router.gate.{w:weight|bias}"),
                    (HF + "input_layernorm.weight", TITAN + "attention_norm.weight"),
                    (HF + "post_attention_layernorm.weight", TITAN + "ffn_norm.weight"),
                    ("model.norm.weight", "norm.weight"),
                ),
            ),
        },
        has=("self_attn.sinks",),
        source="transformers 5.23 and nemo-automodel 0.7.0",
    ),
    Family(
        name="openai_privacy_filter",
        model_types=("openai_privacy_filter",),
        experts=EXPERTS,
        speaks={"hf-fused": Speech(form=INTERLEAVED)},
        has=("self_attn.sinks",),
        source="transformers 5.23, both forms saved and compared",
    ),
)

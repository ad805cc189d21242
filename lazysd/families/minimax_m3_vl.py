"""MiniMax-M3-VL: Mixtral's words below a language model; memory joins gate and up of dense and shared layers too."""

from ..layouts.family import Experts, Family, Speech

HUB = "language_model.model.layers.{layer}."
MEMORY = "model.language_model.layers.{layer}."
NEMO = "model.layers.{layer}."
BLOCK = "block_sparse_moe."
BIAS = "e_score_correction_bias"
GATE_UP = "{g:gate_proj|up_proj}.weight"
INDEX = "self_attn.index_{w:q_proj|k_proj|q_norm|k_norm}.weight"

FAMILY = Family(
    name="minimax_m3_vl",
    model_types=("minimax_m3_vl",),
    experts=Experts(HUB + BLOCK + "experts.", gate="w1", up="w3", down="w2", inner=("intermediate_size",)),
    speaks={
        "hf-fused": Speech(
            MEMORY + "mlp.experts.",
            renames=(
                (HUB + BLOCK + "gate.weight", MEMORY + "mlp.gate.weight"),
                (HUB + BLOCK + BIAS, MEMORY + "mlp.gate." + BIAS),
                (HUB + BLOCK + "shared_experts.down_proj.weight", MEMORY + "mlp.shared_experts.down_proj.weight"),
                (
                    HUB + BLOCK + "shared_experts." + GATE_UP,
                    MEMORY + "mlp.shared_experts.gate_up_proj.weight",
                    "[g] a b -> (g a) b",
                ),
                (HUB + "mlp." + GATE_UP, MEMORY + "mlp.gate_up_proj.weight", "[g] a b -> (g a) b"),
                (HUB + INDEX, MEMORY + "self_attn.indexer.{w:q_proj|k_proj|q_norm|k_norm}.weight"),
                ("language_model.model.{rest:**}", "model.language_model.{rest:**}"),
                ("language_model.lm_head.{rest:**}", "lm_head.{rest:**}"),
                (
                    "vision_tower.vision_model.embeddings.patch_embedding.{rest:**}",
                    "model.vision_tower.embeddings.proj.{rest:**}",
                ),
                ("vision_tower.vision_model.encoder.layers.{rest:**}", "model.vision_tower.layers.{rest:**}"),
                ("vision_tower.vision_model.pre_layrnorm.{rest:**}", "model.vision_tower.pre_layrnorm.{rest:**}"),
                ("multi_modal_projector.{rest:**}", "model.multi_modal_projector.{rest:**}"),
                (
                    "patch_merge_mlp.{w:linear_1|linear_2}.{rest:**}",
                    "model.multi_modal_projector.merge_{w:linear_1|linear_2}.{rest:**}",
                ),
            ),
        ),
        "nemo": Speech(
            NEMO + "mlp.experts.",
            renames=(
                (HUB + BLOCK + "gate.weight", NEMO + "mlp.gate.weight"),
                (HUB + BLOCK + BIAS, NEMO + "mlp.gate." + BIAS),
                (HUB + BLOCK + "shared_experts.{w:*}.weight", NEMO + "shared_experts.{w:*}.weight"),
                ("language_model.model.{rest:**}", "model.{rest:**}"),
                ("language_model.lm_head.{rest:**}", "lm_head.{rest:**}"),
                ("multi_modal_projector.{rest:**}", "vision_tower.multi_modal_projector.{rest:**}"),
                ("patch_merge_mlp.{rest:**}", "vision_tower.patch_merge_mlp.{rest:**}"),
            ),
        ),
    },
    has=("e_score_correction_bias",),
    source="transformers 5.23 and nemo-automodel 0.7.0",
)

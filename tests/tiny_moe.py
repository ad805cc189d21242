"""Tiny random mixture-of-experts models, as transformers builds, saves and names them. Nothing of lazysd."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

NUM_EXPERTS, HIDDEN, INNER, PLAIN = 11, 16, 5, 9  # more than ten experts, odd widths; PLAIN where experts have no own

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": HIDDEN,
    "d_model": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": PLAIN,
    "moe_intermediate_size": INNER,
    "num_experts": NUM_EXPERTS,
    "num_local_experts": NUM_EXPERTS,
    "n_routed_experts": NUM_EXPERTS,
    "moe_num_experts": NUM_EXPERTS,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "top_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "shared_expert_intermediate_size": 7,
    "shared_intermediate_size": 7,
    "moe_shared_expert_intermediate_size": 7,
    "dense_intermediate_size": 7,
    "max_position_embeddings": 64,
    "q_lora_rank": 6,
    "kv_lora_rank": 5,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
    "mamba_d_state": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "n_groups": 1,
    "ssm_state_size": 4,
    "mamba_dt_rank": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "swa_v_head_dim": 8,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 10,
    "num_mel_bins": 8,
    "downsample_hidden_size": 8,
    "n_window": 4,
    "output_dim": HIDDEN,
    "patch_size": 4,
    "image_size": 8,
    "num_position_embeddings": 4,
}

Sizes = dict[str, Any]
PLAIN_TYPES = [
    "qwen3_moe", "qwen2_moe", "qwen3_next", "qwen3_5_moe_text", "deepseek_v2", "deepseek_v3",
    "deepseek_v32", "dots1", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe",
    "glm_moe_dsa", "hunyuan_v1_moe", "mellum", "olmoe", "afmoe", "cohere2_moe",
    "solar_open", "mixtral", "phimoe", "minimax", "minimax_m2", "gpt_oss",
    "openai_privacy_filter", "axk1", "axk2", "bailing_hybrid", "ernie4_5_moe", "exaone_moe",
    "hy_v3", "hy_v4", "kolibri1", "laguna", "mimo_v2_flash", "mistral4",
    "granitemoe", "granitemoeshared", "granitemoehybrid", "granitemoe_swa", "jamba", "nemotron_h",
]  # fmt: skip
INKLING = {
    "d_rel": 4,
    "rel_extent": 8,
    "mlp_layer_types": ["dense", "sparse"],
    "unpadded_vocab_size": 38,
    "n_shared_experts": 2,
}
INKLING2 = {
    "d_rel": 4,
    "rel_extent": 8,
    "unpadded_vocab_size": 38,
    "num_hidden_layers": 3,
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid"],
}
DOTS3 = {"shared_experts_intermediate_size": 7, "mlp_layer_types": ["dense", "sparse"]}
# model_type -> sizes of config.json itself ("") and of its sub-configs, where SIZES will not do
MODELS: dict[str, dict[str, Any]] = {
    **{name: {} for name in PLAIN_TYPES},
    "qwen3_5_moe": {"class": "Qwen3_5MoeForConditionalGeneration"},
    "qwen3_vl_moe": {},
    "qwen3_omni_moe_thinker": {},
    "qwen3_omni_moe": {
        "class": "Qwen3OmniMoeForConditionalGeneration",
        "text_config": {"shared_expert_intermediate_size": 7},
        "talker_config": {"spatial_merge_size": 2, "thinker_hidden_size": HIDDEN, "num_code_groups": 3},
        "code_predictor_config": {"num_code_groups": 3},
        "code2wav_config": {"codebook_size": 8, "num_quantizers": 2, "decoder_dim": 16},
    },
    "minimax_m3_vl": {},
    "kimi_linear": {},
    "llama4": {
        "class": "Llama4ForConditionalGeneration",
        "": {"boi_token_index": 5, "eoi_token_index": 6, "image_token_index": 7},
        "text_config": {"pad_token_id": 0, "intermediate_size_mlp": 7, "interleave_moe_layer_step": 2},
        "vision_config": {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    },
    "llama4_text": {"": {"intermediate_size_mlp": 7, "interleave_moe_layer_step": 2}},
    "aria": {"": {"image_token_index": 5}, "types": {"vision_config": "idefics3_vision", "text_config": "aria_text"}},
    "aria_text": {},
    "dbrx": {
        "": {"d_model": HIDDEN, "n_heads": 2, "n_layers": 2, "max_seq_len": 32},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": HIDDEN, "ffn_hidden_size": INNER, "moe_num_experts": NUM_EXPERTS, "moe_top_k": 2},
    },
    "ernie4_5_vl_moe": {
        "": {"tie_word_embeddings": False, "image_token_id": 5, "video_token_id": 6},
        "text_config": {
            "moe_intermediate_size": [INNER, 3],
            "moe_num_shared_experts": 2,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        },
    },
    "gemma4_text": {
        "": {
            "enable_moe_block": True,
            "top_k_experts": 2,
            "vocab_size_per_layer_input": 40,
            "hidden_size_per_layer_input": 4,
            "global_head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        }
    },
    "lfm2_moe": {
        "": {
            "num_dense_layers": 1,
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "conv_L_cache": 3,
        }
    },
    "longcat_flash": {
        "": {
            "num_layers": 1,
            "ffn_hidden_size": 10,
            "zero_expert_num": 3,
            "expert_ffn_hidden_size": INNER,
            "head_dim": 4,
        }
    },
    "kimi_k25": {
        "": {"projection_hidden_size": HIDDEN, "image_token_id": 5, "video_token_id": 6},
        "types": {"text_config": "deepseek_v3"},
        "vision_config": {"pos_emb_height": 4, "pos_emb_width": 4, "patch_size": 2, "num_hidden_layers": 1},
    },
    "step3p7": {"text_config": {"moe_layers_enum": [1], "share_expert_dim": 7}},
    "zaya": {"": {"num_experts_per_tok": 1}},
    "beam": {"": {"mlp_layer_types": ["dense", "sparse"]}},
    "flint": {"": {"mlp_only_layers": [0]}},
    "jetmoe": {"": {"kv_channels": 8}},
    "switch_transformers": {
        "": {
            "num_layers": 2,
            "num_sparse_encoder_layers": 1,
            "num_decoder_layers": 2,
            "num_sparse_decoder_layers": 1,
            "d_kv": 8,
            "d_ff": INNER,
            "tie_word_embeddings": False,
        },
        "class": "SwitchTransformersForConditionalGeneration",
    },
    "nllb-moe": {
        "": {
            "encoder_sparse_step": 1,
            "decoder_sparse_step": 1,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": INNER,
            "decoder_ffn_dim": INNER,
            "tie_word_embeddings": False,
        },
        "class": "NllbMoeForConditionalGeneration",
    },
    "unlimited_ocr": {
        "sam_config": {
            "hidden_size": 8,
            "num_attention_heads": 2,
            "output_channels": 4,
            "mlp_dim": 6,
            "downsample_channels": (5, 7),
            "window_size": 2,
            "global_attn_indexes": (1,),
        },
    },
    "glm5_next": {
        "text_config": {
            "index_kpool": 2,
            "index_topk": 16,
            "qk_rope_head_dim": 0,
            "linear_head_dim": 8,
            "linear_num_heads": 2,
            "mlp_layer_types": ["dense", "sparse"],
        },
    },
    "qwen4_exp": {
        "class": "Qwen4ExpForConditionalGeneration",
        "text_config": {
            "ple_layer_ids": [1],
            "split_ngram_parts": 11,
            "ngram_vocab_size_base": 5,
            "make_ngram_vocab_size_divisible_by": 11,
            "heads_per_ngram": 2,
        },
    },
    "deepseek_v4": {
        "": {
            "num_hidden_layers": 3,
            "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention", "sliding_attention"],
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
            "num_key_value_heads": 1,
            "o_groups": 2,
            "o_lora_rank": 3,
            "partial_rotary_factor": 0.5,
            "sliding_window": 8,
            "hc_mult": 2,
            "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        },
    },
    "inkling_mm_model": {
        "text_config": INKLING,
        "audio_config": {"n_mel_bins": 4, "mel_vocab_size": 5},
        "vision_config": {"num_hidden_layers": 9},  # so many that no assignment problem has to be solved
    },
    "inkling_text": {"": INKLING},
    "inkling2": {
        "text_config": INKLING2,
        "vision_config": {"text_hidden_size": HIDDEN, "projection_hidden_dim": 6, "posemb_grid_size": 2},
    },
    "inkling2_text": {"": INKLING2},
    "mistral_large4": {"types": {"vision_config": "pixtral"}},
    "dots3_note": {
        "class": "Dots3NoteForConditionalGeneration",
        "text_config": DOTS3,
        "vision_config": {
            "mlp_layer_types": ["dense", "sparse"],
            "num_local_experts": 4,
            "adapter_in_dim": HIDDEN,
            "adapter_out_dim": HIDDEN,
            "moe_intermediate_size": 6,
        },
        "audio_config": {
            "adapter_input_size": HIDDEN,
            "adapter_out_dim": HIDDEN,
            "feature_size": 8,
            "downsample_hidden_size": 4,
        },
    },
    "dots3_note_text": {"class": "Dots3NoteForCausalLM", "": DOTS3},
    "muse_spark": {
        "text_config": {"moe_hidden_size": 12},
        "": {"out_hidden_size": 10, "projector_hidden_size": 9},
        "audio_config": {
            "hidden_sizes": [4, 8, 8, 8],
            "depths": [1, 1, 1, 1],
            "out_hidden_size": HIDDEN,
            "num_hidden_layers": 4,
        },
        "vision_config": {"pos_emb_height": 2, "pos_emb_width": 2, "max_position_embeddings": 4},
    },
    "deepseek_ocr2": {
        "sam_config": {
            "hidden_size": 8,
            "num_attention_heads": 2,
            "output_channels": 4,
            "mlp_dim": 6,
            "downsample_channels": [5, 16],
            "window_size": 2,
            "global_attn_indexes": [1],
        },
        "text_config": {"mlp_layer_types": ["dense", "sparse"]},
    },
    "doge": {"": {"is_moe": True, "num_experts": 16}},  # a square number
    "diffusion_gemma": {
        "text_config": {
            "top_k_experts": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "global_head_dim": 8,
        },
        "types": {"vision_config": "gemma4_vision"},
    },
    "gemma4": {
        "class": "Gemma4ForConditionalGeneration",
        "text_config": {
            "enable_moe_block": True,
            "top_k_experts": 2,
            "vocab_size_per_layer_input": 40,
            "hidden_size_per_layer_input": 4,
            "global_head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "types": {"vision_config": "gemma4_vision", "audio_config": "gemma4_audio"},
    },
}


def _kwargs(config: Any, given: dict[str, Any], name: str, sizes: Sizes) -> Sizes:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = {field.name for field in dataclasses.fields(config)}
    made = {key: value for key, value in sizes.items() if key in fields} | given.get(name, {})
    for key, below in (config.sub_configs or {}).items():
        if key in given.get("types", {}):
            model_type = given["types"][key]
            made[key] = {"model_type": model_type, **_kwargs(CONFIG_MAPPING[model_type], given, key, sizes)}
        elif below.__name__ != "AutoConfig":
            made[key] = _kwargs(below, given, key, sizes)
    return made


def build(model_type: str, **sizes: int) -> Any:
    """The model, every float of it random; `sizes` go over those above."""
    import transformers
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    given = MODELS[model_type]
    name = given.get("class") or next(
        names[model_type]
        for names in (
            auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
            auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
            auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
            auto.MODEL_MAPPING_NAMES,
        )
        if model_type in names
    )
    config = CONFIG_MAPPING[model_type](**_kwargs(CONFIG_MAPPING[model_type], given, "", {**SIZES, **sizes}))
    model = getattr(transformers, name)(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in model.state_dict().values():  # other buffers are worked out from the config
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float32) / 4)
    return model.eval()


def answer(model: Any) -> torch.Tensor:
    """What a model says to a few tokens: logits, or what it has of their kind."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the others want wider experts
    ids = torch.tensor([[3, 1, 4, 15, 9, 2, 6, 8]])
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {"use_cache": False}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **more).logits


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder."""
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}


HUB_KEYS: dict[str, Callable[[str], str]] = {  # where transformers 5.23 saves other keys than the hub has
    "kimi_k25": lambda key: re.sub(
        r"^(vision_tower\.)encoder\.(?=patch_embed)|^()model\.(?=mm_projector)",
        r"\1",
        key.replace("language_model.model.blocks.", "language_model.model.layers."),
    ),
    "kimi_linear": lambda key: re.sub(r"block_sparse_moe\.((?:gate|up|down)_proj)\.", r"mlp.\1.", key),
}


class Saved(NamedTuple):
    """A model as transformers saves it in both forms and holds it in memory."""

    disk: dict[str, torch.Tensor]
    fused: dict[str, torch.Tensor]
    memory: dict[str, torch.Tensor]
    config: dict[str, Any]
    answer: torch.Tensor | None  # None where a model needs more than tokens


# No forward at these sizes; diffusion_gemma's answer begins with noise.
SILENT = ("deepseek_v2", "glm4v_moe", "mimo_v2_flash", "qwen3_omni_moe", "dbrx", "step3p7", "diffusion_gemma")


@cache
def saved(model_type: str, **sizes: int) -> Saved:
    """A tiny model of a type and sizes, built and saved once in a process."""
    model = build(model_type, **sizes)
    with TemporaryDirectory() as folder:
        disk, fused = Path(folder) / "disk", Path(folder) / "fused"
        model.save_pretrained(disk)
        model.save_pretrained(fused, save_original_format=False)
        rename = HUB_KEYS.get(model_type, lambda key: key)
        config = json.loads((disk / "config.json").read_text())
        said = None if model_type in SILENT else answer(model)
        return Saved({rename(k): t for k, t in read(disk).items()}, read(fused), model.state_dict(), config, said)

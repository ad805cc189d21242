"""Layout nemo of every family against that family's own state dict adapter of nemo-automodel."""

from __future__ import annotations

import importlib
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import assert_same
from tiny_moe import HIDDEN, INNER, NUM_EXPERTS, PLAIN, saved

import lazysd
from lazysd.errors import LayoutError

pytest.importorskip("nemo_automodel")
transformers = pytest.importorskip("transformers")

ADAPTERS = {  # model_type -> module of the adapter, its class
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeStateDictAdapter"),
    "qwen2_moe": ("qwen3_moe", "Qwen3MoeStateDictAdapter"),
    "qwen3_omni_moe_thinker": ("qwen3_omni_moe", "Qwen3OmniMoeStateDictAdapter"),
    "qwen3_next": ("qwen3_next", "Qwen3NextStateDictAdapter"),
    "qwen3_5_moe": ("qwen3_5_moe", "Qwen3_5MoeStateDictAdapter"),
    "qwen3_vl_moe": ("qwen3_vl_moe", "Qwen3VLMoeStateDictAdapter"),
    "deepseek_v2": ("deepseek_v3", "DeepSeekV3StateDictAdapter"),
    "deepseek_v3": ("deepseek_v3", "DeepSeekV3StateDictAdapter"),
    "deepseek_v32": ("deepseek_v32", "DeepSeekV32StateDictAdapter"),
    "glm4_moe": ("glm4_moe", "Glm4MoeStateDictAdapter"),
    "glm4_moe_lite": ("glm4_moe", "Glm4MoeStateDictAdapter"),
    "glm_moe_dsa": ("glm_moe_dsa", "GlmMoeDsaStateDictAdapter"),
    "mimo_v2_flash": ("mimo_v2_flash", "MiMoV2FlashStateDictAdapter"),
    "ernie4_5_moe": ("ernie4_5", "Ernie4_5_MoeStateDictAdapter"),
    "hy_v3": ("hy_v3", "HYV3StateDictAdapter"),
    "laguna": ("laguna", "LagunaStateDictAdapter"),
    "bailing_hybrid": ("ling_v2", "BailingMoeV2StateDictAdapter"),
    "gpt_oss": ("gpt_oss", "GPTOSSStateDictAdapter"),
    "minimax_m2": ("minimax_m2", "MiniMaxM2StateDictAdapter"),
    "minimax_m3_vl": ("minimax_m3_vl", "MiniMaxM3VLStateDictAdapter"),
    "kimi_linear": ("kimi_linear", "KimiLinear48BStateDictAdapter"),
    "kimi_k25": ("kimi_k25_vl", "KimiK25VLStateDictAdapter"),
    "nemotron_h": ("nemotron_v3", "NemotronV3StateDictAdapter"),
    "step3p7": ("step3p7", "Step3p7StateDictAdapter"),
    "deepseek_v4": ("deepseek_v4", "DeepSeekV4StateDictAdapter"),
    "glm5_next": ("glm5_next", "Glm5NextStateDictAdapter"),
    "inkling_mm_model": ("inkling", "InklingStateDictAdapter"),
    "qwen4_exp": ("qwen3_8_flash_next", "Qwen3_8_FlashNextStateDictAdapter"),
}
REFUSED = {
    "mistral4": ("mistral4", "Mistral4StateDictAdapter"),
    "gemma4": ("gemma4_moe", "Gemma4MoEStateDictAdapter"),
    "diffusion_gemma": ("diffusion_gemma", "DiffusionGemmaStateDictAdapter"),
}
PLAIN_WIDTH = ("gpt_oss", "minimax_m2", "minimax_m3_vl")


def adapter(model_type: str, dtype: torch.dtype = torch.float32) -> Any:
    """The adapter as NeMo builds it; of its MoE and backend configs it reads a few plain values."""
    module, name = {**ADAPTERS, **REFUSED}[model_type]
    module = f"nemo_automodel.components.models.{module}.state_dict_adapter"
    stated = {k: v for k, v in saved(model_type).config.items() if k != "time_step_limit"}  # infinite: no plain JSON
    config = transformers.AutoConfig.for_model(**stated)
    width = PLAIN if model_type in PLAIN_WIDTH else INNER
    moe = SimpleNamespace(
        n_routed_experts=NUM_EXPERTS, n_shared_experts=1, dim=HIDDEN, inter_dim=PLAIN, moe_inter_dim=width,
        expert_activation="relu2" if model_type == "nemotron_h" else "swiglu", expert_bias=model_type == "gpt_oss",
        moe_latent_size=None, expert_dim=HIDDEN, dtype=dtype,
    )  # fmt: skip
    backend = SimpleNamespace(dispatcher="torch", experts="torch", gate_precision=None, linear="torch", attn="sdpa")
    more = ()
    if model_type == "qwen4_exp":  # which wants the module of its n-gram table, of one rank that has it all
        config, rows = config.text_config, sum(len(t) for key, t in saved(model_type).disk.items() if ".shard_" in key)
        more = (SimpleNamespace(num_embeddings=rows, global_row_start=0, global_row_end=rows),)
    if model_type == "deepseek_v4":
        config.num_nextn_predict_layers = 1
    return getattr(importlib.import_module(module), name)(config, moe, backend, *more, dtype=dtype)


def with_mtp(hf: dict[str, torch.Tensor], layer: int, there: str, **more: str) -> dict[str, torch.Tensor]:
    """A copy of one layer's tensors under an MTP layer's keys, negated; and small tensors under further keys."""
    made = dict(hf)
    for key, tensor in hf.items():
        if found := re.fullmatch(rf"[a-z_.]*layers\.{layer}\.(.+)", key):
            made[there + found[1]] = -tensor
    return made | {key: torch.full((HIDDEN,), float(number)) for number, key in enumerate(more.values())}


def transposed(hf: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Qwen3-VL-MoE as the hub has it, from what transformers saves."""
    return {key: t.transpose(1, 2).contiguous() if ".mlp.experts." in key else t for key, t in hf.items()}


def without_model(hf: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """DeepSeek-V4 as the hub has it, with an MTP layer, from what transformers saves."""
    named = {
        key.removeprefix("model.").replace("embed_tokens.", "embed.").replace("hc_head.hc_", "hc_head_"): tensor
        for key, tensor in hf.items()
    }
    made = with_mtp(named, 1, "mtp.0.", a="mtp.0.e_proj.weight", b="mtp.0.enorm.weight", c="mtp.0.norm.weight")
    more = ("mtp.0.hc_head_fn", "vision.patch.weight", "aligner.proj.bias", "image_pad")
    return made | {key: torch.full((3,), float(number)) for number, key in enumerate(more)}


def published(model_type: str) -> tuple[dict[str, torch.Tensor], str]:
    """The state dict as the hub has it, MTP layers too where there are such, and its layout."""
    model = saved(model_type)
    if model_type == "qwen3_vl_moe":
        return transposed(model.disk), "hf-transposed"
    if model_type == "deepseek_v4":
        return without_model(model.disk), "hf"
    if model_type == "qwen3_5_moe":
        fused = with_mtp(model.disk, 1, "mtp.layers.0.") | model.fused
        mine = {key: tensor for key, tensor in fused.items() if key.startswith("mtp.") or key in model.fused}
        hf = with_mtp(
            mine, 9, "", a="mtp.fc.weight", b="mtp.norm.weight",
            c="mtp.pre_fc_norm_embedding.weight", d="mtp.pre_fc_norm_hidden.weight",
        )  # fmt: skip
        return hf, "hf-hub"
    if model_type == "qwen3_next":
        return with_mtp(model.disk, 1, "mtp.layers.0.", a="mtp.fc.weight", b="mtp.norm.weight"), "hf"
    if model_type in ("deepseek_v3", "glm4_moe", "deepseek_v32", "glm_moe_dsa"):
        return with_mtp(model.disk, 1, "model.layers.2.", a="model.layers.2.eh_proj.weight"), "hf"
    if model_type == "nemotron_h":
        moe = next(int(key.split(".")[2]) for key in model.disk if ".mixer.experts." in key)
        return with_mtp(model.disk, moe, "mtp.layers.0.", a="mtp.layers.0.eh_proj.weight"), "hf"
    return model.disk, "hf"


@pytest.mark.parametrize("model_type", [name for name in ADAPTERS if name != "qwen4_exp"])
def test_equals_the_adapter(model_type: str) -> None:
    hf, layout = published(model_type)
    dtype = torch.bfloat16 if model_type == "kimi_k25" else torch.float32
    hf = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in hf.items()}
    theirs = adapter(model_type, dtype).from_hf({key: tensor.clone() for key, tensor in hf.items()})
    config = saved(model_type).config
    ours = lazysd.convert(hf, to="nemo", source=layout, config=config)
    assert_same(ours, theirs)
    assert_same(lazysd.convert(theirs, to=layout, source="nemo", config=config), hf)


def test_an_ngram_table_is_one_tensor_there() -> None:
    """The adapter of Qwen3.8-Flash-Next reads the table's shards through views of the whole, and experts stacked."""
    model = saved("qwen4_exp")
    theirs = adapter("qwen4_exp")
    table = next(key for key in model.fused if key.endswith("ngram_embedding.weight"))
    stacked = {key: tensor for key, tensor in model.fused.items() if key != table}
    stacked |= {key: tensor for key, tensor in model.disk.items() if ".shard_" in key}
    assert len(stacked) - len(model.fused) == 10
    native = theirs.from_hf({key: tensor.clone() for key, tensor in stacked.items()}) | {table: model.fused[table]}
    assert_same(theirs.to_hf(dict(native)), stacked)
    ours = lazysd.convert(model.disk, to="nemo", config=model.config)
    assert_same(ours, native)
    assert_same(lazysd.convert(native, to="hf", source="nemo", config=model.config), model.disk)


def test_what_transformers_saves_of_deepseek_v4_is_not_what_nemo_reads() -> None:
    model = saved("deepseek_v4")
    theirs = adapter("deepseek_v4").from_hf(dict(model.disk))
    assert any(key.endswith("mlp.experts.0.w1.weight") or ".ffn.experts.0." in key for key in theirs)  # left as it was
    with pytest.raises(LayoutError, match=r"reads the names of the hub, without `model\.`"):
        lazysd.convert(model.disk, to="nemo", config=model.config)


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused_for_what_the_adapter_does(model_type: str) -> None:
    """It adds zeros that no file holds, or multiplies a scale into a weight and gives back ones."""
    model = saved(model_type)
    theirs = adapter(model_type)
    made = theirs.from_hf({key: tensor.clone() for key, tensor in model.disk.items()})
    back = theirs.to_hf(dict(made))
    with pytest.raises(LayoutError, match="router bias of zeros" if model_type == "mistral4" else "no way back"):
        lazysd.convert(model.disk, to="nemo", config=model.config)
    if model_type == "mistral4":
        added = [key for key in made if key.endswith("e_score_correction_bias")]
        assert added
        assert not any(bool(made[key].any()) or key in model.disk for key in added)
        return
    scale = next(key for key in model.disk if key.endswith("per_expert_scale"))
    down = scale.replace("router.per_expert_scale", "experts.down_proj")
    assert bool((back[scale] == 1).all())
    assert not torch.equal(back[down], model.disk[down])

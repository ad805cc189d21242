"""Layout megatron of families with experts against the names that Megatron-Bridge documents, spelt out here by hand.

Read in Megatron-Bridge's deepseek/common.py, glm45_bridge.py, glm47_flash_bridge.py and olmoe_bridge.py, and in
Megatron-Core's gpt_layer_specs.py and multi_token_prediction.py (2026); none of it runs without a GPU.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, noise, write
from tiny_moe import HIDDEN, NUM_EXPERTS, saved

import lazysd
from lazysd.errors import LayoutError, MissingExpertsError

pytest.importorskip("transformers")

Tensors = dict[str, torch.Tensor]
LATENT = {  # Megatron's name below the layer -> Hugging Face's
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.linear_q_proj.weight": "self_attn.q_proj.weight",
    "self_attention.linear_q_down_proj.weight": "self_attn.q_a_proj.weight",
    "self_attention.linear_q_up_proj.weight": "self_attn.q_b_proj.weight",
    "self_attention.linear_q_up_proj.layer_norm_weight": "self_attn.q_a_layernorm.weight",
    "self_attention.linear_kv_down_proj.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "self_attention.linear_kv_up_proj.weight": "self_attn.kv_b_proj.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight": "self_attn.kv_a_layernorm.weight",
}
QKV = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
}
DENSE = {
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
SPARSE = {
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.expert_bias": "mlp.gate.e_score_correction_bias",
    "mlp.shared_experts.linear_fc2.weight": "mlp.shared_experts.down_proj.weight",
    **{f"mlp.experts.linear_fc2.weight{e}": f"mlp.experts.{e}.down_proj.weight" for e in range(NUM_EXPERTS)},
}
GATED = {
    "mlp.linear_fc1.weight": "mlp.{}_proj.weight",
    "mlp.shared_experts.linear_fc1.weight": "mlp.shared_experts.{}_proj.weight",
    **{f"mlp.experts.linear_fc1.weight{e}": f"mlp.experts.{e}.{{}}_proj.weight" for e in range(NUM_EXPERTS)},
}
MODEL = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
PREDICTING = {
    **{f"{name}.weight": f"{name}.weight" for name in ("enorm", "hnorm", "eh_proj")},
    "final_layernorm.weight": "shared_head.norm.weight",
}
FAMILIES = {"deepseek_v2": LATENT, "deepseek_v3": LATENT, "glm4_moe_lite": LATENT, "glm4_moe": QKV, "olmoe": QKV}
WITH_MTP = ("deepseek_v3", "glm4_moe", "glm4_moe_lite")


def layer(hf: Tensors, at: str, there: str, attention: dict[str, str], heads: tuple[int, int]) -> Tensors:
    """A layer as Megatron-Bridge maps it."""
    table = attention | (SPARSE if at + "mlp.gate.weight" in hf else DENSE)
    made = {there + name: hf[at + other] for name, other in table.items() if at + other in hf}
    for name, other in GATED.items():
        if at + other.format("gate") in hf:
            made[there + name] = torch.cat([hf[at + other.format(word)] for word in ("gate", "up")])
    for end in ("weight", "bias") if attention is QKV else ():
        parts = [f"{at}self_attn.{word}_proj.{end}" for word in "qkv"]
        if parts[0] in hf:
            groups = [hf[part].chunk(heads[1]) for part in parts]
            made[f"{there}self_attention.linear_qkv.{end}"] = torch.cat([g[n] for n in range(heads[1]) for g in groups])
    return made


def bridged(hf: Tensors, config: dict[str, Any], attention: dict[str, str]) -> Tensors:
    """The whole state dict as Megatron-Bridge maps it."""
    made = {name: hf[other] for name, other in MODEL.items() if other in hf}
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    last = config["num_hidden_layers"]
    for number in range(last):
        made |= layer(hf, f"model.layers.{number}.", f"decoder.layers.{number}.", attention, heads)
    for number in range(2):
        at, there = f"model.layers.{last + number}.", f"mtp.layers.{number}."
        made |= layer(hf, at, there + "mtp_model_layer.", attention, heads)
        made |= {there + name: hf[at + other] for name, other in PREDICTING.items() if at + other in hf}
    return made


def with_mtp(hf: Tensors, layers: int, number: int, count: int = 1) -> Tensors:
    """Further layers like layer `number`, and what makes MTP layers of them."""
    made = dict(hf)
    for more in range(count):
        there = f"model.layers.{layers + more}."
        at = f"model.layers.{number}."
        made |= {there + key.removeprefix(at): -t for key, t in hf.items() if key.startswith(at)}
        made |= {there + name: noise((HIDDEN,), seed=n + 9 * more) for n, name in enumerate(PREDICTING.values())}
    return made


def same(found: Any, wanted: Tensors) -> None:
    assert_same(found, wanted)
    assert all(found[key].shape == wanted[key].shape for key in wanted)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_equals_what_megatron_bridge_documents(model_type: str) -> None:
    model = saved(model_type)
    hf, config = dict(model.disk), model.config
    if model_type in WITH_MTP:
        hf = with_mtp(hf, config["num_hidden_layers"], 1, count=2)
    wanted = bridged(hf, config, FAMILIES[model_type])
    made = lazysd.convert(hf, to="megatron", config=config)
    same(made, wanted)
    same(lazysd.convert(wanted, to="hf", config=config), hf)
    for other in set(lazysd.layouts.names(model_type)) & {"nemo", "vllm", "torchtitan", "hf-fused"}:
        there = lazysd.convert(made, to=other, config=config)
        same(there, lazysd.convert(hf, to=other, config=config))
        same(lazysd.convert(there, to="megatron", source=other, config=config), wanted)


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite"])
def test_latent_attention_without_q_lora_rank(model_type: str) -> None:
    """DeepSeek-V2-Lite and Moonlight: one matrix for the queries, and the norm before it a module of its own."""
    model = saved(model_type, q_lora_rank=None)
    assert "model.layers.1.self_attn.q_proj.weight" in model.disk
    wanted = bridged(model.disk, model.config, LATENT)
    assert {"self_attention.linear_q_proj.weight", "input_layernorm.weight"} <= {key[17:] for key in wanted}
    same(lazysd.convert(model.disk, to="megatron", config=model.config), wanted)
    same(lazysd.convert(wanted, to="hf", config=model.config), model.disk)


SHARED = ("embed_tokens.weight", "shared_head.head.weight")


def published_mtp(model_type: str = "deepseek_v3") -> tuple[Tensors, dict[str, Any]]:
    """DeepSeek-V3's layer 61 in small: it holds the embedding and the head once more, which Megatron-Core shares."""
    model = saved(model_type)
    hf = with_mtp(model.disk, 2, 1)
    copies = (hf["model.embed_tokens.weight"].clone(), hf["lm_head.weight"].clone())
    return hf | dict(zip(("model.layers.2." + name for name in SHARED), copies, strict=True)), model.config


def test_copies_of_the_embeddings_keep_their_keys() -> None:
    hf, config = published_mtp()
    made = lazysd.convert(hf, to="megatron", config=config)
    assert sorted(key for key in made if key.startswith("model.")) == ["model.layers.2." + name for name in SHARED]
    same(lazysd.convert(made, to="hf", config=config), hf)


def test_which_layers_predict_is_never_guessed() -> None:
    hf, config = published_mtp()
    made = lazysd.convert(hf, to="megatron", config=config)
    unsaid = {key: value for key, value in config.items() if key != "num_hidden_layers"}
    for tensors, to in ((hf, "megatron"), (made, "hf"), (made, "nemo")):
        with pytest.raises(LayoutError, match=r"MTP layers follow the others, and num_hidden_layers of config\.json"):
            lazysd.convert(tensors, to=to, config=unsaid)
        same(lazysd.convert(tensors, to=to, config={**unsaid, "num_hidden_layers": 2}),
             lazysd.convert(tensors, to=to, config=config))  # fmt: skip
    with pytest.raises(LayoutError, match="is not known or larger than this layer's number"):
        lazysd.convert(hf, to="megatron", config={**config, "num_hidden_layers": 3})
    plain = {key: tensor for key, tensor in hf.items() if "layers.2." not in key}
    same(lazysd.convert(plain, to="megatron", config=unsaid), lazysd.convert(plain, to="megatron", config=config))


def test_mtp_layers_of_other_names_are_refused() -> None:
    hf, config = published_mtp()
    made = lazysd.convert(hf, to="megatron", config=config)
    older = {key.replace("mtp_model_layer", "transformer_layer"): tensor for key, tensor in made.items()}
    with pytest.raises(LayoutError, match=r"mtp\.layers\.0\.transformer_layer.*older versions.*transformer_layer"):
        lazysd.convert(older, to="hf", config=config, source="megatron")


@pytest.mark.parametrize("lost", ["down_proj", "up_proj"])
def test_an_mtp_layer_is_held_to_what_other_layers_are(lost: str) -> None:
    hf, config = published_mtp()
    key = f"model.layers.2.mlp.experts.{NUM_EXPERTS - 1}.{lost}.weight"
    del hf[key]
    for to in ("megatron", "nemo"):
        with pytest.raises(MissingExpertsError, match=re.escape(key)):
            lazysd.convert(hf, to=to, config=config)


def test_fp8_with_an_mtp_layer(tmp_path: Path) -> None:
    """As published: codes and scales of the MTP layer travel with the others."""
    model = saved("deepseek_v3", moe_intermediate_size=128, intermediate_size=128)
    plain = with_mtp(model.disk, 2, 1)
    config = model.config | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    codes = {key: t.to(torch.float8_e4m3fn) for key, t in plain.items() if ".mlp." in key and "_proj.weight" in key}
    scales = {key + "_scale_inv": noise((1, 1), seed=n) for n, key in enumerate(codes)}
    ckpt = lazysd.open(write(tmp_path / "hf", plain | codes | scales, config=config))
    made = ckpt.convert("megatron")
    for at, there in (("model.layers.1.", "decoder.layers.1."), ("model.layers.2.", "mtp.layers.0.mtp_model_layer.")):
        for e in (0, NUM_EXPERTS - 1):
            pair = [f"{at}mlp.experts.{e}.{word}_proj.weight" for word in ("gate", "up")]
            there_e = f"{there}mlp.experts.linear_fc1.weight{e}"
            assert torch.equal(made[there_e].materialize().view(torch.uint8),
                               torch.cat([codes[key].view(torch.uint8) for key in pair]))  # fmt: skip
            assert torch.equal(made[there_e + "_scale_inv"].materialize(),
                               torch.cat([scales[key + "_scale_inv"] for key in pair]))  # fmt: skip
    assert_same(made.convert("hf"), plain | codes | scales)


def test_by_the_command_line(tmp_path: Path) -> None:
    from lazysd.cli.main import main

    hf, config = published_mtp()
    write(tmp_path / "hf", hf, config=config)
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "m"), "--to", "megatron", "--verify", "-q"]) == 0
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "back"), "--to", "hf", "--verify", "-q"]) == 0
    assert_same(lazysd.open(tmp_path / "back"), hf)


@pytest.mark.parametrize("model_type", ["qwen2_moe", "dots1"])
def test_families_that_megatron_bridge_does_not_map(model_type: str) -> None:
    model = saved(model_type)
    with pytest.raises(LayoutError, match=f"family '{model_type}' has no layout 'megatron': Megatron-Bridge has no"):
        lazysd.convert(model.disk, to="megatron", config=model.config)

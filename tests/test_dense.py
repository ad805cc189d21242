"""Projections of dense layers, merged as vLLM and Megatron-Core have them, and split again. Oracle: torch by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, noise, write

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError, MissingExpertsError

HEADS, GROUPS, HEAD, HIDDEN, INNER = 6, 2, 4, 18, 7
CONFIG: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
}


def llama(layers: int = 11, bias: bool = False) -> dict[str, torch.Tensor]:
    rows = {"q": HEADS * HEAD, "k": GROUPS * HEAD, "v": GROUPS * HEAD}
    made = {"model.embed_tokens.weight": noise((9, HIDDEN)), "model.norm.weight": noise((HIDDEN,), seed=1)}
    made["lm_head.weight"] = noise((9, HIDDEN), seed=2)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for seed, (name, size) in enumerate(rows.items()):
            made[f"{at}self_attn.{name}_proj.weight"] = noise((size, HIDDEN), seed=9 * layer + seed)
            if bias:
                made[f"{at}self_attn.{name}_proj.bias"] = noise((size,), seed=9 * layer + seed + 100)
        made[at + "self_attn.o_proj.weight"] = noise((HIDDEN, HEADS * HEAD), seed=9 * layer + 3)
        for seed, name in enumerate(("gate", "up")):
            made[f"{at}mlp.{name}_proj.weight"] = noise((INNER, HIDDEN), seed=9 * layer + 4 + seed)
        made[at + "mlp.down_proj.weight"] = noise((HIDDEN, INNER), seed=9 * layer + 6)
        made[at + "input_layernorm.weight"] = noise((HIDDEN,), seed=9 * layer + 7)
        made[at + "post_attention_layernorm.weight"] = noise((HIDDEN,), seed=9 * layer + 8)
    return made


def opened(tmp_path: Path, state: dict[str, torch.Tensor], model_type: str = "llama", **config: Any) -> Any:
    stated = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
    return lazysd.open(write(tmp_path / model_type, state, config={"model_type": model_type, **stated}))


@pytest.mark.parametrize(("model_type", "bias"), [("llama", False), ("qwen2", True), ("mistral", False)])
def test_vllm(tmp_path: Path, model_type: str, bias: bool) -> None:
    state = llama(bias=bias)
    ckpt = opened(tmp_path, state, model_type)
    found = ckpt.convert("vllm")
    assert found.layout == "vllm"
    for layer in (0, 10):
        at = f"model.layers.{layer}."
        for end in ("weight", "bias") if bias else ("weight",):
            parts = [state[f"{at}self_attn.{name}_proj.{end}"] for name in "qkv"]
            assert_same({"x": found[f"{at}self_attn.qkv_proj.{end}"]}, {"x": torch.cat(parts)})
        both = torch.cat([state[f"{at}mlp.{name}_proj.weight"] for name in ("gate", "up")])
        assert_same({"x": found[at + "mlp.gate_up_proj.weight"]}, {"x": both})
        assert found[at + "mlp.down_proj.weight"] is ckpt[at + "mlp.down_proj.weight"]
    back = found.convert("hf")
    assert set(back) == set(ckpt)
    assert all(back[key] is ckpt[key] for key in ckpt)


def by_groups(state: dict[str, torch.Tensor], at: str, end: str) -> torch.Tensor:
    """Megatron's order: each group's queries, then its key, then its value."""
    parts = [state[f"{at}self_attn.{name}_proj.{end}"] for name in "qkv"]
    per_group = [part.chunk(GROUPS) for part in parts]
    return torch.cat([per_group[n][group] for group in range(GROUPS) for n in range(3)])


@pytest.mark.parametrize(("model_type", "bias"), [("llama", False), ("qwen2", True)])
def test_megatron(tmp_path: Path, model_type: str, bias: bool) -> None:
    state = llama(bias=bias)
    ckpt = opened(tmp_path, state, model_type)
    found = ckpt.convert("megatron")
    assert all(key.startswith(("decoder.", "embedding.", "output_layer.")) for key in found)
    for layer in (0, 10):
        at, there = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        expected = {
            "self_attention.linear_qkv.weight": by_groups(state, at, "weight"),
            "self_attention.linear_qkv.layer_norm_weight": state[at + "input_layernorm.weight"],
            "self_attention.linear_proj.weight": state[at + "self_attn.o_proj.weight"],
            "mlp.linear_fc1.weight": torch.cat([state[at + f"mlp.{g}_proj.weight"] for g in ("gate", "up")]),
            "mlp.linear_fc1.layer_norm_weight": state[at + "post_attention_layernorm.weight"],
            "mlp.linear_fc2.weight": state[at + "mlp.down_proj.weight"],
        }
        if bias:
            expected["self_attention.linear_qkv.bias"] = by_groups(state, at, "bias")
        assert_same({key: found[there + key] for key in expected}, expected)
    for to in ("hf", "vllm"):
        back = found.convert(to).convert("hf")
        assert set(back) == set(ckpt)
        assert_same(back, state)
    assert all(found.convert("hf")[key] is ckpt[key] for key in ckpt)


@pytest.mark.parametrize("head_dim", [HEAD, None])
def test_sizes_that_config_json_leaves_to_be_worked_out(tmp_path: Path, head_dim: int | None) -> None:
    """No head_dim: it is hidden_size over heads. No num_key_value_heads: as many as heads."""
    state = {f"model.layers.0.self_attn.{name}_proj.weight": noise((6, 6), seed=n) for n, name in enumerate("qkv")}
    config = {"num_attention_heads": 2, "num_key_value_heads": None, "head_dim": None, "hidden_size": 6}
    ckpt = opened(tmp_path, state, **config)
    for to in ("vllm", "megatron"):
        assert_same(ckpt.convert(to).convert("hf"), state)
    heads = [part.chunk(2) for part in state.values()]
    expected = torch.cat([heads[n][head] for head in range(2) for n in range(3)])
    assert_same({"x": ckpt.convert("megatron")["decoder.layers.0.self_attention.linear_qkv.weight"]}, {"x": expected})


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    state = llama(layers=1)
    ckpt = opened(tmp_path, state)
    with pytest.raises(MissingExpertsError, match=r"missing: model\.layers\.0\.self_attn\.k_proj\.weight"):
        ckpt.drop("*.k_proj.weight").convert("vllm")
    with pytest.raises(LayoutError, match=r"axis q has size 24, expected 32"):
        lazysd.open(ckpt.path).convert("vllm", config={"num_attention_heads": 8})
    with pytest.raises(LayoutError, match="no layout 'nemo': it groups experts, and this family has none"):
        ckpt.convert("nemo")
    scale = {"model.layers.0.self_attn.q_proj.weight_scale_inv": noise((1, 1))}
    with pytest.raises(LayoutError, match=r"q_proj\.weight has scales, but is BF16 and not FP8"):
        (ckpt | scale).convert("vllm")
    with pytest.raises(LayoutError, match=r"the sizes of \['n', 'a', 'b', 'c'\]|are not known"):
        lazysd.convert(dict(ckpt.convert("megatron")), "hf", source="megatron", family="llama")


def test_the_command_line(tmp_path: Path) -> None:
    ckpt = opened(tmp_path, llama(layers=2))
    assert main(["convert", str(ckpt.path), str(tmp_path / "out"), "--to", "megatron", "--verify", "-q"]) == 0
    back = ["convert", str(tmp_path / "out"), str(tmp_path / "back"), "--from", "megatron", "--to", "hf", "-q"]
    assert main(back) == 0
    assert_same(lazysd.open(tmp_path / "back"), llama(layers=2))


@pytest.mark.parametrize("to", ["vllm", "megatron"])
@pytest.mark.parametrize("bias", [False, True])
def test_merged_projections_are_verified_and_compared_without_being_told(tmp_path: Path, to: str, bias: bool) -> None:
    ckpt = opened(tmp_path, llama(layers=11, bias=bias), "qwen2" if bias else "llama")
    out = tmp_path / "out"
    ckpt.convert(to).save(out)
    assert main(["verify", str(out), "--against", str(ckpt.path), "-q"]) == 0
    assert main(["verify", str(ckpt.path), "--against", str(out), "-q"]) == 0
    assert main(["diff", str(out), str(ckpt.path), "-q"]) == 0
    assert lazysd.compare(ckpt.path, out).equal
    key = "decoder.layers.10.self_attention.linear_qkv.weight"
    key = key if to == "megatron" else "model.layers.10.self_attn.qkv_proj.weight"
    wrong = lazysd.open(out).map(lambda name, t: t.materialize().neg() if name == key else t, with_key=True)
    wrong.save(tmp_path / "wrong")
    assert main(["verify", str(tmp_path / "wrong"), "--against", str(ckpt.path), "-q"]) == 1
    assert [d.key for d in lazysd.compare(tmp_path / "wrong", ckpt.path).differences] == [key]


def test_qwen3_moe_for_megatron(tmp_path: Path) -> None:
    """TEGroupedMLP: one linear_fc1 (gate over up) and linear_fc2 for each expert, the number last in the key."""
    experts, inner = 12, 3
    state = {key: value for key, value in llama(layers=1).items() if ".mlp." not in key}
    at, there = "model.layers.0.", "decoder.layers.0."
    state[at + "mlp.gate.weight"] = noise((experts, HIDDEN), seed=50)
    for e in range(experts):
        for n, (name, dims) in enumerate(
            (("gate", (inner, HIDDEN)), ("up", (inner, HIDDEN)), ("down", (HIDDEN, inner)))
        ):
            state[f"{at}mlp.experts.{e}.{name}_proj.weight"] = noise(dims, seed=60 + 3 * e + n)
    config = {**CONFIG, "model_type": "qwen3_moe", "num_experts": experts, "moe_intermediate_size": inner}
    ckpt = lazysd.open(write(tmp_path / "moe", state, config=config))
    found = ckpt.convert("megatron")
    for e in (0, 1, 11):
        both = torch.cat([state[f"{at}mlp.experts.{e}.{g}_proj.weight"] for g in ("gate", "up")])
        assert_same({"x": found[f"{there}mlp.experts.linear_fc1.weight{e}"]}, {"x": both})
        down = state[f"{at}mlp.experts.{e}.down_proj.weight"]
        assert_same({"x": found[f"{there}mlp.experts.linear_fc2.weight{e}"]}, {"x": down})
    assert_same({"x": found[there + "self_attention.linear_qkv.weight"]}, {"x": by_groups(state, at, "weight")})
    assert_same({"x": found[there + "pre_mlp_layernorm.weight"]}, {"x": state[at + "post_attention_layernorm.weight"]})
    assert_same({"x": found[there + "mlp.router.weight"]}, {"x": state[at + "mlp.gate.weight"]})
    assert all(found.convert("hf")[key] is ckpt[key] for key in ckpt)
    nemo = found.convert("nemo")
    assert nemo[at + "mlp.experts.down_projs"].dims == (experts, inner, HIDDEN)
    beyond = at.replace("0", "1")
    half = {beyond + "mlp.up_proj.weight": lazysd.from_torch(noise((inner, HIDDEN)))}
    with pytest.raises(LayoutError, match="a dense layer has gate, up and down together"):
        (ckpt | half).convert("megatron")
    alone = {beyond + "post_attention_layernorm.weight": lazysd.from_torch(noise((HIDDEN,)))}
    with pytest.raises(LayoutError, match="neither a router nor a down_proj stands in it"):
        (ckpt | alone).convert("megatron")
    more = {f"{beyond}mlp.{g}_proj.weight": noise((6, HIDDEN) if g != "down" else (HIDDEN, 6)) for g in DENSE}
    more[beyond + "post_attention_layernorm.weight"] = noise((HIDDEN,), seed=5)
    mixed = ckpt | {key: lazysd.from_torch(tensor) for key, tensor in more.items()}
    found = mixed.convert("megatron")
    expected = {
        "mlp.linear_fc1.weight": torch.cat([more[f"{beyond}mlp.{g}_proj.weight"] for g in ("gate", "up")]),
        "mlp.linear_fc1.layer_norm_weight": more[beyond + "post_attention_layernorm.weight"],
        "mlp.linear_fc2.weight": more[beyond + "mlp.down_proj.weight"],
    }
    assert_same({key: found["decoder.layers.1." + key] for key in expected}, expected)
    assert "decoder.layers.0.pre_mlp_layernorm.weight" in found
    assert all(found.convert("hf")[key] is mixed[key] for key in mixed)


DENSE = ("gate", "up", "down")


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_what_transformers_writes(tmp_path: Path, model_type: str) -> None:
    """Keys and sizes of real configs: merged, split again, and the very files that transformers wrote."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=11, num_hidden_layers=2, tie_word_embeddings=False, **CONFIG
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "hf")
    ckpt = lazysd.open(tmp_path / "hf")
    weights = model.state_dict()
    found = ckpt.convert("vllm")
    for layer in range(2):
        at = f"model.layers.{layer}.self_attn."
        expected = torch.cat([weights[f"{at}{name}_proj.weight"] for name in "qkv"])
        assert_same({"x": found[at + "qkv_proj.weight"]}, {"x": expected})
    for to in ("vllm", "megatron"):
        made = ckpt.convert(to)
        assert not any("q_proj" in key or "gate_proj" in key for key in made)
        back = made.convert("hf")
        assert set(back) == set(ckpt)
        assert all(back[key] is ckpt[key] for key in ckpt)
    grouped = ckpt.convert("megatron")["decoder.layers.1.self_attention.linear_qkv.weight"]
    assert_same({"x": grouped}, {"x": by_groups(weights, "model.layers.1.", "weight")})
    assert all(key.startswith(("decoder.", "embedding.", "output_layer.")) for key in ckpt.convert("megatron"))

"""Lists of modules in quantization_config after a conversion, as the programs that wrote them read them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_experts import EXPERT
from quantised_experts import experts as made_experts
from safetensors.torch import save_file
from test_quant_travel import gpt_oss

import lazysd
from lazysd.cli.main import main
from lazysd.quantization import quantize

transformers = pytest.importorskip("transformers")


def experts(*args: Any, **sizes: Any) -> Any:
    return deepcopy(made_experts(*args, **sizes))


def lazily(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}


def modules(checkpoint: lazysd.Checkpoint) -> set[str]:
    return {key.removesuffix(".weight") for key in checkpoint if key.endswith(".weight") and checkpoint[key].ndim > 1}


def written(checkpoint: lazysd.Checkpoint, name: str) -> Any:
    said = (checkpoint.config or {})["quantization_config"]
    files = checkpoint.facts.json_files
    assert "config.json" not in files or files["config.json"]["quantization_config"] == said
    return said[name]


def gpt_oss_with(listed: list[str]) -> lazysd.Checkpoint:
    source = gpt_oss(E=2)[1]
    beside = {f"model.layers.0.self_attn.{p}_proj.weight": torch.randn(64, 64) for p in "qkvo"}
    beside |= {"lm_head.weight": torch.randn(50, 64), "model.embed_tokens.weight": torch.randn(50, 64)}
    config = {**(source.config or {}), "quantization_config": {"quant_method": "mxfp4"}}
    config["quantization_config"]["modules_to_not_convert"] = listed
    return lazysd.Checkpoint({**source, **lazily(beside)}, config=config)


PUBLISHED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


@pytest.mark.parametrize("to", ["hf-fused", "nemo", "vllm", "torchtitan"])
@pytest.mark.parametrize("listed", [PUBLISHED, ["q_proj", "router", "lm_head"], ["model.layers.0.self_attn.k_proj"]])
def test_what_transformers_leaves_plain_it_leaves_plain_under_other_names(to: str, listed: list[str]) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    source = gpt_oss_with(listed)
    plain = {source[name + ".weight"].op: should_convert_module(name, listed) for name in modules(source)}
    made = source.convert(to)
    now = written(made, "modules_to_not_convert")
    kept = {name: should_convert_module(name, now) for name in modules(made) if "experts" not in name}
    assert len(kept) == 7
    assert kept == {name: plain[made[name + ".weight"].op] for name in kept}
    back = made.convert("hf")
    again = written(back, "modules_to_not_convert")
    assert {name: should_convert_module(name, again) for name in modules(back)} == {
        name: should_convert_module(name, listed) for name in modules(source)
    }
    if to == "torchtitan" and listed is PUBLISHED:
        assert "layers.0.moe.router.gate" in now
        assert any("'model.layers.*.mlp.router' is spelt out: 1 modules" in text for text in made.remarks)
    if to in ("hf-fused", "vllm"):
        assert now == listed
        assert not made.remarks


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (["Linear"], ["Linear"]),
        (["re:.*experts.*", "re:.*q_proj$"], ["re:.*experts.*", "re:.*q_proj$"]),
        ([r"re:.*experts\.\d+\.(gate|up|down)_proj$"], ["model.layers.0.mlp.experts"]),
        (
            [f"{EXPERT.format(0, e, g)}" for e in range(3) for g in ("gate", "up", "down")],
            ["model.layers.0.mlp.experts"],
        ),
    ],
)
def test_targets_of_compressed_tensors(targets: list[str], wanted: list[str]) -> None:
    match = pytest.importorskip("compressed_tensors.utils.match").match_name
    tensors, config = experts("8-bit a row", E=3)
    said = config["quantization_config"]
    said["ignore"] = ["lm_head", "re:.*mlp.gate$"]
    said["config_groups"]["group_0"]["targets"] = targets
    source = lazysd.Checkpoint(lazily(tensors), config=config)
    made = source.convert("vllm")
    assert written(made, "config_groups")["group_0"]["targets"] == wanted
    assert written(made, "ignore") == ["lm_head", "re:.*mlp.gate$"]
    assert said["config_groups"]["group_0"]["targets"] == targets, "the source's config was edited"
    if wanted != ["Linear"]:
        assert any(match("model.layers.0.mlp.experts.w13_weight", one) for one in wanted) or wanted[0].endswith(
            "experts"
        )


def test_modelopts_wildcards() -> None:
    tensors, config = experts("nvfp4 modelopt", E=2, model_type="qwen3_next")
    tensors = {key: tensor for key, tensor in tensors.items() if "q_proj" not in key}
    tensors |= {f"model.layers.0.mlp.shared_expert.{g}_proj.weight": torch.ones(32, 64) for g in ("gate", "up")}
    config["quantization_config"]["exclude_modules"] = ["*.mlp.gate", "model.layers.0.mlp.shared_expert.*", "lm_head"]
    source = lazysd.Checkpoint(lazily(tensors), config=config, layout="hf", family="qwen3_next")
    assert source.convert("vllm").config == source.config
    plain = {key: node for key, node in source.items() if ".experts." not in key}
    fp8 = experts("fp8 square", E=2)[0]
    config["quantization_config"] |= experts("fp8 square", E=2)[1]["quantization_config"] | {"quant_method": "modelopt"}
    tensors = {key: tensor for key, tensor in fp8.items() if ".experts." in key}
    source = lazysd.Checkpoint({**plain, **lazily(tensors)}, config=config, layout="hf", family="qwen3_next")
    made = source.convert("nemo")  # which calls it shared_experts
    at = "model.layers.0.mlp.shared_experts."
    assert written(made, "exclude_modules") == ["*.mlp.gate", at + "gate_proj", at + "up_proj", "lm_head"]


def test_patterns_that_might_not_end_are_not_run() -> None:
    for pattern in ("re:(a+)+$", "re:(.*)*b", "re:.*.*.*.*.*.*.*.*b", "re:[", "re:a{1,9999}b"):
        tensors, config = experts("8-bit a row", E=2)
        config["quantization_config"]["ignore"] = [pattern]
        made = lazysd.Checkpoint(lazily(tensors), config=config).convert("vllm")
        assert written(made, "ignore") == [pattern]
        assert any("is not read as a pattern here" in text for text in made.remarks)


def test_lists_that_are_none_stay_what_they_are() -> None:
    tensors, config = experts("8-bit a row", E=2)
    for odd in ({"a": 1}, "lm_head", [1, None], 3):
        config["quantization_config"] |= {"ignore": odd, "modules_to_not_convert": odd}
        made = lazysd.Checkpoint(lazily(tensors), config=config).convert("vllm")
        assert made.config == config


def test_config_json_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = gpt_oss_with(PUBLISHED)
    inner = {"text_config": source.config, "model_type": "gpt_oss", "keep": [1]}
    tensors = {key: node.materialize() for key, node in source.items()}
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "a/config.json").write_text(json.dumps(inner))
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "nemo", "--verify"]) == 0
    said = json.loads((tmp_path / "b/config.json").read_text())
    assert said["keep"] == [1]
    listed = said["text_config"]["quantization_config"]["modules_to_not_convert"]
    assert listed == ["model.layers.*.self_attn", "model.layers.0.mlp.gate", "model.embed_tokens", "lm_head"]
    assert "'model.layers.*.mlp.router' is spelt out" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "b"), "--against", str(tmp_path / "a")]) == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keys", [["*o_proj.weight"], ["*experts.*", "*o_proj.weight"]])
def test_transformers_reads_what_was_converted(tmp_path: Path, keys: list[str]) -> None:
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).bfloat16().save_pretrained(tmp_path / "plain")
    quantize(lazysd.open(tmp_path / "plain"), "fp8-blocks", keys, weight_block_size=[16, 16]).save(tmp_path / "hf")
    made = lazysd.open(tmp_path / "hf").convert("hf-fused")
    made.save(tmp_path / "fused")
    lazysd.open(tmp_path / "fused").convert("hf").save(tmp_path / "back")
    assert "model.layers.1.mlp.gate" in written(made, "modules_to_not_convert")
    assert "model.layers.1.block_sparse_moe.gate" in written(lazysd.open(tmp_path / "back"), "modules_to_not_convert")
    before, fused, back = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.bfloat16).state_dict()
        for name in ("hf", "fused", "back")
    )
    assert all(torch.equal(tensor, back[key]) for key, tensor in before.items())
    same = all(torch.equal(tensor, fused[key]) for key, tensor in before.items())
    assert same == (len(keys) == 1)  # where it decodes as it loads, transformers 5.23 does not decode fused experts
    assert any("transformers 5.23 takes their codes for weights" in text for text in made.remarks) != same


def modelopt_folder(path: Path, said: dict[str, Any], stated: bool = True, to: str = "qwen3_next") -> Path:
    """Experts in NVFP4, with what ModelOpt writes beside them."""
    tensors, config = experts("nvfp4 modelopt", E=2, model_type=to)
    config = {**config, "num_attention_heads": 4, "num_key_value_heads": 2}
    tensors |= {f"model.layers.0.mlp.shared_expert.{g}_proj.weight": torch.ones(32, 64) for g in ("gate", "up")}
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config["quantization_config"] |= said
    if not stated:
        del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", **said}}
    (path / "hf_quant_config.json").write_text(json.dumps(beside))
    return path


@pytest.mark.parametrize("stated", [True, False])
def test_what_modelopt_says_beside_config_json(stated: bool, tmp_path: Path) -> None:
    said = {"exclude_modules": ["model.layers.0.mlp.shared_expert.*", "lm_head"], "group_size": 16}
    said |= {"quantized_layers": {EXPERT.format(0, e, "up"): {"quant_algo": "NVFP4"} for e in range(2)}}
    source = modelopt_folder(tmp_path / "a", said, stated)
    assert main(["convert", str(source), str(tmp_path / "b"), "--to", "nemo", "--verify"]) == 0
    beside = json.loads((tmp_path / "b/hf_quant_config.json").read_text())
    at = "model.layers.0.mlp."
    assert beside["producer"] == {"name": "modelopt"}
    wanted = [at + "shared_experts.gate_proj", at + "shared_experts.up_proj", "lm_head"]
    assert beside["quantization"]["exclude_modules"] == wanted
    assert beside["quantization"]["quantized_layers"] == {at + "experts": {"quant_algo": "NVFP4"}}
    assert beside["quantization"]["group_size"] == 16
    assert "quant_method" not in beside["quantization"]
    config = json.loads((tmp_path / "b/config.json").read_text())
    if stated:
        assert config["quantization_config"] == {"quant_method": "modelopt", **beside["quantization"]}
    else:
        assert config == json.loads((source / "config.json").read_text())


@pytest.mark.parametrize("stated", [True, False])
def test_no_file_says_that_what_was_decoded_is_quantised(stated: bool, tmp_path: Path) -> None:
    source = modelopt_folder(tmp_path / "a", {}, stated)
    for name, args in {"b": ["--dtype", "bf16"], "c": ["--quantize", "nvfp4-compressed"]}.items():
        assert main(["convert", str(source), str(tmp_path / name), *args]) == 0
        assert not (tmp_path / name / "hf_quant_config.json").exists()
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config.get("quantization_config", {}).get("quant_method") == (
            None if name == "b" else "compressed-tensors"
        )
    (source / "config.json").unlink()
    assert main(["convert", str(source), str(tmp_path / "d"), "--dtype", "bf16"]) == 0
    assert not (tmp_path / "d/hf_quant_config.json").exists()


def test_a_module_that_is_said_to_be_quantised_in_two_ways_is_remarked(tmp_path: Path) -> None:
    said = {"quantized_layers": {EXPERT.format(0, e, "up"): {"quant_algo": f"{e}"} for e in range(2)}}
    made = lazysd.open(modelopt_folder(tmp_path / "a", said)).convert("vllm")
    assert any("is made of modules that are said to be quantised in several ways" in text for text in made.remarks)
    (tmp_path / "a/hf_quant_config.json").write_text("{")
    with pytest.raises(lazysd.errors.LazysdError, match="hf_quant_config"):
        lazysd.open(tmp_path / "a").convert("vllm")

"""What inspect says of a checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.cli.main import main
from lazysd.overview import overview
from lazysd.testing import assert_reads_only


def test_it_reads_no_data(golden: Path) -> None:
    data = assert_reads_only(lambda: overview(lazysd.open(golden / "qwen3_moe_tiny")))
    assert data["parameters"] == 38_464
    assert data["bits_per_weight"] == 16
    assert [shard["tensors"] for shard in data["shards"]] == [27, 30]


def test_active_parameters_are_counted_from_config(golden: Path) -> None:
    ckpt = lazysd.open(golden / "qwen3_moe_tiny")
    config = json.loads((golden / "qwen3_moe_tiny" / "config.json").read_text())
    experts = sum(node.numel() for key, node in ckpt.items() if ".experts." in key)
    used = experts * config["num_experts_per_tok"] // 6
    assert overview(ckpt)["active_parameters"] == 38_464 - experts + used
    assert overview(ckpt.convert("nemo"))["active_parameters"] == 38_464 - experts + used
    assert overview(ckpt.like(dict(ckpt), config=None))["active_parameters"] is None
    nested = {"text_config": {"num_experts_per_tok": 1, "num_experts": 6}}
    assert overview(ckpt.like(dict(ckpt), config=nested))["active_parameters"] == 38_464 - experts + experts // 6


def test_weights_are_counted_not_codes(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.zeros(130, 256).to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.ones(2, 2)}
    save_file(tensors | {"b.weight": torch.zeros(10)}, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    data = overview(lazysd.open(tmp_path))
    assert data["parameters"] == 130 * 256 + 10
    assert list(data["quantization"].values()) == [1]
    assert data["bits_per_weight"] == round(8 * (130 * 256 + 16 + 40) / (130 * 256 + 10), 3)


def test_entries_say_where_bytes_lie(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(golden / "qwen3_moe_tiny"), "--json-lines", "--match", "*norm*"]) == 0
    first, *entries = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["tensors"] == 57
    ckpt = lazysd.open(golden / "qwen3_moe_tiny")
    assert [entry["key"] for entry in entries] == list(ckpt.select("*norm*"))
    for entry in entries:
        assert [(entry["file"], entry["offset"], entry["nbytes"])] == ckpt[entry["key"]].reads()


def test_rows_are_sorted_and_capped(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(golden / "qwen3_moe_tiny"), "--sort", "size", "--top", "3"]) == 0
    rows = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert all(".experts." in row for row in rows[:3])
    assert rows[3] == "… and 21 more tensors in 12 rows"


def test_depth_is_of_the_tree_and_top_cuts_it(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(golden / "qwen3_moe_tiny")
    assert main(["inspect", path, "--depth", "2"]) == 0
    shown = capsys.readouterr().out
    assert "  layers.{0-1}" in shown
    assert "experts" not in shown.split("\n\n")[1]
    assert main(["inspect", path, "--tree", "--top", "2"]) == 0
    assert capsys.readouterr().out.endswith("\n… and 55 more tensors\n")


def test_parameters_stand_in_every_view(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt = lazysd.open(golden / "qwen3_moe_tiny")
    active = overview(ckpt)["active_parameters"]
    said = f"38,464 parameters, {active:,} active for a token"
    assert said in repr(ckpt)
    assert said in ckpt._repr_html_()
    assert main(["inspect", str(golden / "qwen3_moe_tiny")]) == 0
    assert f"weights  {said}" in capsys.readouterr().out


def test_a_dense_model_has_the_layout_that_conversions_find(tmp_path: Path) -> None:
    block = "model.layers.0."
    shapes = {f"{block}self_attn.{name}_proj.weight": (4, 4) for name in "qkvo"}
    shapes |= {f"{block}mlp.{name}_proj.weight": (6, 4) for name in ("gate", "up")} | {
        f"{block}mlp.down_proj.weight": (4, 6)
    }
    shapes |= {f"{block}{name}_layernorm.weight": (4,) for name in ("input", "post_attention")}
    shapes |= {"model.embed_tokens.weight": (7, 4), "model.norm.weight": (4,), "lm_head.weight": (7, 4)}
    save_file({key: torch.rand(dims) for key, dims in shapes.items()}, tmp_path / "model.safetensors")
    sizes = {"hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 2, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    ckpt = lazysd.open(tmp_path)
    vllm = ckpt.convert("vllm")
    for view, layout in ((ckpt, "hf"), (vllm.like(dict(vllm), layout=None, family=None), "vllm")):
        assert (overview(view)["layout"], overview(view)["family"]) == (layout, "llama")
        assert f"{layout} (llama)" in repr(view)


def test_metadata_and_irregular_layers_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {f"layers.{n}.{k}": torch.zeros(2) for n in range(11) for k in "ab" if (n, k) != (10, "b")}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt", "step": "7\x1b[31m"})
    assert main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "metadata step=7\\x1b[31m\n" in shown
    assert "uneven   layer 10 lacks b\n" in shown
    assert "\x1b" not in shown


def test_stats_of_a_slice(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, key = str(golden / "qwen3_moe_tiny"), "model.layers.0.mlp.experts.gate_and_up_projs"
    assert main(["show", source, key, "--to", "nemo", "--slice", "4", "--stats"]) == 0
    out = capsys.readouterr().out
    assert "shape   bf16[32, 48], 1,536 elements" in out
    assert "█" in out
    assert main(["show", source, key, "--to", "nemo", "--slice", "4", "--stats", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    expected = lazysd.open(source).convert("nemo")[key][4].materialize()
    assert data["stats"]["max"] == float(expected.max())
    assert "values" not in data
    assert main(["show", source, key, "--to", "nemo", "--stats", "--no-values"]) == 2


def test_rows_fit_the_terminal(
    golden: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    source = str(golden / "qwen3_moe_tiny")
    for words in (["inspect", "--keys"], ["inspect", "--tree"], ["stats", "--no-progress"]):
        capsys.readouterr()
        assert main([*words, source]) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if "weight" in line]
        assert len(rows) > 10
        assert max(map(len, rows)) <= 90


def test_an_adapter_is_counted_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = "base_model.model.model.layers.0.self_attn.q_proj."
    tensors = {f"{at}lora_A.weight": torch.ones(4, 8), f"{at}lora_B.weight": torch.ones(8, 4)}
    save_file(tensors | {f"{at}lora_magnitude_vector": torch.ones(8)}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "use_dora": True, "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "adapter  DoRA of rank 4, alpha 8" in shown
    assert "         3 tensors, 288 B" in shown
    assert "DoRA of rank 4" in lazysd.open(tmp_path)._repr_html_()


def test_a_pipeline_names_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("vae", "unet"):
        (tmp_path / part).mkdir()
        save_file({"w": torch.ones(2)}, tmp_path / part / "diffusion_pytorch_model.safetensors")
    (tmp_path / "model_index.json").write_text("{}")
    assert main(["inspect", str(tmp_path)]) == 3
    assert f"several models, 'unet', 'vae'; open one of them, for instance {tmp_path}/unet" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "unet")]) == 0

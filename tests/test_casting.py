"""Converting any architecture without a layout: casts, names, shards, one file; and what a cast leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lazysd
from lazysd.casting import cast_checkpoint
from lazysd.cli.main import main
from lazysd.errors import LayoutError
from lazysd.renaming import rename_keys


def mixed() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "h.0.attn.weight": torch.randn(6, 10).bfloat16(),
        "h.0.mlp.weight": torch.randn(10, 6).bfloat16(),
        "h.0.norm.weight": torch.randn(10),
        "h.0.gate.e_score_correction_bias": torch.randn(4),
        "h.0.wide.weight": torch.randn(2, 3),
        "h.0.bias": torch.randn(10).bfloat16(),
        "position_ids": torch.arange(7),
        "mask": torch.tensor([True, False]),
    }


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    save_file(mixed(), tmp_path / "src" / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "gpt2", "torch_dtype": "bfloat16", "vision_config": {"dtype": "bfloat16", "hidden_size": 3}}
    (tmp_path / "src" / "config.json").write_text(json.dumps(config))
    (tmp_path / "src" / "tokenizer.json").write_text("{}")
    return tmp_path / "src"


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in [folder] if folder.is_file() else sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[key].dtype == value.dtype and found[key].shape == value.shape and torch.equal(found[key], value)
        for key, value in expected.items()
    )


def test_a_copy_of_any_architecture_reshards_and_filters(src: Path, tmp_path: Path) -> None:
    assert main(["convert", str(src), str(tmp_path / "out"), "--max-shard-size", "100", "--verify"]) == 0
    assert same(loaded(tmp_path / "out"), mixed())
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert (tmp_path / "out" / "config.json").read_bytes() == (src / "config.json").read_bytes()
    assert main(["convert", str(src), str(tmp_path / "some"), "--include", "h.*", "--exclude", "*.bias"]) == 0
    assert loaded(tmp_path / "some").keys() == {key for key in mixed() if key.startswith("h.") and key != "h.0.bias"}


@pytest.mark.parametrize("everything", [False, True])
def test_a_cast_leaves_alone_what_would_lose_by_it(src: Path, tmp_path: Path, everything: bool) -> None:
    args = ["convert", str(src), str(tmp_path / "out"), "--dtype", "f16", "--verify"]
    assert main([*args, "--cast-all"] if everything else args) == 0
    stay = () if everything else ("h.0.norm.weight", "h.0.gate.e_score_correction_bias")
    expected = {
        key: value.half() if value.is_floating_point() and key not in stay else value for key, value in mixed().items()
    }
    assert same(loaded(tmp_path / "out"), expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {
        "model_type": "gpt2",
        "torch_dtype": "float16",
        "vision_config": {"dtype": "float16", "hidden_size": 3},
    }
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_a_widening_cast_and_a_uniform_checkpoint_keep_nothing_back() -> None:
    ckpt = lazysd.Checkpoint({key: lazysd.from_torch(value) for key, value in mixed().items()})
    wide = cast_checkpoint(ckpt, "f64")
    assert {key: node.dtype for key, node in wide.items() if node.dtype != torch.float64} == {
        "position_ids": torch.int64,
        "mask": torch.bool,
    }
    uniform = cast_checkpoint(lazysd.Checkpoint({"norm.weight": lazysd.from_torch(torch.ones(3))}), "bf16")
    assert uniform["norm.weight"].dtype == torch.bfloat16


def test_casts_that_make_no_sense_are_refused(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype in ("int8", "f8e4m3"):
        assert main(["convert", str(src), str(tmp_path / "out"), "--dtype", dtype]) == 3
        assert "values would be lost without a scale" in capsys.readouterr().err
    codes = lazysd.Checkpoint({"w": lazysd.from_torch(torch.zeros(4, 4).to(torch.float8_e4m3fn))})
    with pytest.raises(LayoutError, match="codes mean nothing without their scales"):
        cast_checkpoint(codes, "bf16")
    assert "exclude" not in capsys.readouterr().err
    assert main(["convert", str(src), str(tmp_path / "out"), "--cast-all"]) == 2
    assert main(["convert", str(src), str(tmp_path / "out"), "--from", "hf"]) == 2
    assert not (tmp_path / "out").exists()


def test_verify_of_a_cast_says_what_it_compared(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(src), str(out), "--dtype", "f16"]) == 0
    capsys.readouterr()
    assert main(["verify", str(out), "--against", str(src)]) == 0
    assert "cast bf16 -> f16 (3 tensors), cast f32 -> f16 (1 tensors)" in capsys.readouterr().out
    tensors = loaded(out)
    tensors["h.0.mlp.weight"].view(torch.int16)[3, 2] ^= 1
    save_file(tensors, out / "model.safetensors")
    assert main(["verify", str(out), "--against", str(src)]) == 1
    assert "h.0.mlp.weight: values: 1 of 60 elements differ" in capsys.readouterr().out
    tensors["position_ids"] = tensors["position_ids"].float()  # a cast may not do that
    save_file(tensors, out / "model.safetensors")
    assert main(["verify", str(out), "--against", str(src)]) == 1
    assert "position_ids: dtype" in capsys.readouterr().out


def test_names_by_pattern(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = ["--rename", "h.*.norm.weight=blocks.*.ln.weight", "--rename", "h.*=blocks.*"]
    assert main(["convert", str(src), str(tmp_path / "out.safetensors"), *rules, "--verify"]) == 0
    expected = {
        key.replace("norm", "ln").replace("h.0", "blocks.0") if key.startswith("h.") else key: value
        for key, value in mixed().items()
    }
    assert same(loaded(tmp_path / "out.safetensors"), expected)
    assert "which is one file, 2 files: 'config.json'" in capsys.readouterr().err
    for old, new, message in (("nothing.*", "x.*", "no key fits"), ("h.*", "x", r"the same \* and \?")):
        with pytest.raises(LayoutError, match=message):
            rename_keys(lazysd.open(src), [(old, new)])
    with pytest.raises(LayoutError, match="two tensors the name 'mask'"):
        rename_keys(lazysd.open(src), [("position_ids", "mask")])
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(src), str(tmp_path / "x"), "--rename", "nothing"])

"""A Qwen3-MoE model made by transformers: saved, converted away and back by us, loaded again by transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same
from safetensors import safe_open

import lazysd

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> Any:
    config = transformers.Qwen3MoeConfig(
        vocab_size=61, hidden_size=32, intermediate_size=24, moe_intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=5, num_experts_per_tok=2,
        max_position_embeddings=32, tie_word_embeddings=False, mlp_only_layers=[1],
    )  # fmt: skip
    torch.manual_seed(5)
    return transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16).eval()


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder, max_shard_size="12KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def assert_same_model(folder: Path, saved: Path) -> None:
    """What transformers loads from both folders has one state dict and one answer."""
    loaded, original = load(folder), load(saved)
    assert_same(loaded.state_dict(), original.state_dict())
    tokens = torch.arange(20).reshape(2, 10) % 61
    with torch.no_grad():
        logits = loaded(tokens).logits
        assert logits.isfinite().all()
        assert torch.equal(logits, original(tokens).logits)


@pytest.mark.parametrize("middle", ["nemo", "hf-fused"])
def test_there_and_back_loads_as_the_same_model(saved: Path, tmp_path: Path, middle: str) -> None:
    lazysd.open(saved).convert(middle).save(tmp_path / "away", max_shard_size="20KB")
    lazysd.open(tmp_path / "away").convert("hf").save(tmp_path / "back", max_shard_size="9KB")
    assert_same_model(tmp_path / "back", saved)
    assert_same(lazysd.open(tmp_path / "back"), lazysd.open(saved))


def test_there_and_back_by_the_command_line(saved: Path, tmp_path: Path) -> None:
    away, back = tmp_path / "away", tmp_path / "back"
    for src, dst, to in ((saved, away, "nemo"), (away, back, "hf")):
        command = [
            sys.executable,
            "-m",
            "lazysd",
            "convert",
            src,
            dst,
            "--to",
            to,
            "--max-shard-size",
            "15KB",
            "--verify",
        ]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "bit for bit" in done.stdout
        for shard in dst.glob("*.safetensors"):
            with safe_open(shard, "pt") as file:
                assert list(file.keys())
    assert_same_model(back, saved)
    assert not (back / "lazysd.manifest.json").samefile(away / "lazysd.manifest.json")
    for name in ("config.json", "generation_config.json"):
        assert (back / name).read_bytes() == (saved / name).read_bytes()


def test_both_formats_that_save_pretrained_writes(model: Any, saved: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    fused = lazysd.open(tmp_path / "fused")
    assert (fused.layout, lazysd.open(saved).layout) == ("hf-fused", "hf")
    assert_same(fused.convert("hf"), lazysd.open(saved))
    assert_same(lazysd.open(saved).convert("hf-fused"), fused)
    assert_same(lazysd.open(saved).convert("hf-fused"), model.state_dict())


def test_a_saved_hf_fused_checkpoint_loads(saved: Path, tmp_path: Path) -> None:
    lazysd.open(saved).convert("hf-fused").save(tmp_path / "out")
    assert_same_model(tmp_path / "out", saved)

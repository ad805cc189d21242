"""The whole product in a few seconds, on a checkpoint of 40 kB: open, look, convert, prove, save, verify, load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import assert_same, by_hand, random_hf, write

import lazysd
from lazysd.cli.main import main


def test_walk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf = random_hf(experts=4, hidden=8, inner=6, layers=2)
    src = write(tmp_path / "hf", hf, shards=3, config={"model_type": "qwen3_moe", "num_local_experts": 4})

    ckpt = lazysd.open(src)
    assert (ckpt.layout, ckpt.family, len(ckpt)) == ("hf", "qwen3_moe", len(hf))
    out = ckpt.convert("nemo")
    key = "model.layers.1.mlp.experts.gate_and_up_projs"
    grouped = out[key]
    assert repr(grouped) == "LazyTensor(bf16[4, 8, 12], 768 B, stack of 4)"
    expected = by_hand(hf, 4, layer=1)["nemo"][key]
    assert torch.equal(grouped[2, :, ::3].materialize().view(torch.int16), expected[2, :, ::3])
    assert torch.equal(grouped.to(torch.float32).materialize().isnan(), grouped.materialize().isnan())

    plan = out.plan(max_shard_size=1500)
    assert plan.tensor_nbytes == plan.read_nbytes == ckpt.nbytes
    assert not plan.lossy
    assert len(plan.shards) > 1
    assert out.save(tmp_path / "nemo", max_shard_size=1500).num_tensors == len(out)
    assert_same(lazysd.open(tmp_path / "nemo").convert("hf"), hf)

    assert main(["inspect", str(tmp_path / "nemo")]) == 0
    assert "nemo" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "nemo"), str(tmp_path / "back"), "--to", "hf", "--verify", "-q"]) == 0
    assert main(["verify", str(tmp_path / "back"), "--against", str(tmp_path / "nemo")]) == 0
    assert main(["diff", str(src), str(tmp_path / "nemo")]) == 0
    assert main(["show", str(src), key, "--to", "nemo", "--slice", "0, :2, ::6"]) == 0
    capsys.readouterr()
    assert_same(lazysd.open(tmp_path / "back"), hf)

    # gate and up trade places in one expert: equal sizes, equal keys, and it is found
    a, b = (f"model.layers.0.mlp.experts.3.{name}_proj.weight" for name in ("gate", "up"))
    wrong = write(tmp_path / "wrong", hf | {a: hf[b], b: hf[a]}, config={"num_experts": 4})
    assert main(["verify", str(wrong), "--against", str(tmp_path / "nemo")]) == 1
    assert "experts.3.gate_proj.weight: values" in capsys.readouterr().out

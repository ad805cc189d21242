"""verify, diff and convert --verify: adapters with equal tensors are the same only where their files say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import expert_key, write
from lora_adapters import PREFIX, adapter_config, in_layout, native_lora, write_adapter

import lazysd
from lazysd.cli.main import main

Q = PREFIX + "layers.0.self_attn.q_proj."
ATTENTION = {Q + "lora_A.weight": torch.ones(2, 4), Q + "lora_B.weight": torch.ones(6, 2)}
SAID = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "peft_version": "0.21.2"}
EXPERTS = in_layout(native_lora(), "peft-0.19")

CHANGES: dict[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 8000},
    "no alpha": {"lora_alpha": None},
    "alpha_pattern": {"alpha_pattern": {".*_proj": 9}},
    "rslora": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "targets": {"target_modules": ["v_proj"]},
    "regex": {"target_modules": ".*q_proj"},
    "parameters": {"target_parameters": ["mlp.experts.down_proj"]},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "whole modules": {"modules_to_save": ["lm_head"]},
    "start": {"init_lora_weights": "pissa"},
    "somebody's own": {"gamma": 3},
}
SAME: dict[str, dict[str, Any]] = {
    "defaults": {"bias": "none", "use_dora": False, "rank_pattern": {}, "megatron_core": "megatron.core"},
    "no effect": {"base_model_name_or_path": "x", "peft_version": "0.20.0", "inference_mode": True, "task_type": "A"},
    "a pattern of the default": {"alpha_pattern": {"q_proj": 8}, "rank_pattern": {"proj": 2}},
    "the same scale": {"use_rslora": True, "lora_alpha": 8 / 2**0.5},
}


def pair(tmp_path: Path, tensors: Any, one: Any, other: Any) -> tuple[str, str]:
    return tuple(str(write_adapter(tmp_path / n, tensors, c)) for n, c in (("a", one), ("b", other)))  # type: ignore[return-value]


def assert_all(codes: int, a: str, b: str, *more: str) -> None:
    for words in (["diff", a, b], ["diff", b, a], ["verify", a, "--against", b], ["verify", b, "--against", a]):
        assert main([*words, *more]) == codes, words


@pytest.mark.parametrize("more", [(), ("--include", "*q_proj*"), ("--include", "*lora_A*"), ("--exclude", "*xyz*")])
@pytest.mark.parametrize("change", CHANGES)
def test_attention_only_adapters(tmp_path: Path, change: str, more: tuple[str, ...]) -> None:
    a, b = pair(tmp_path, ATTENTION, SAID, SAID | CHANGES[change])
    for words in (["diff", a, b, *more], ["diff", b, a, *more, "--no-values"], ["verify", a, "--against", b]):
        assert main(words) == 1, words


@pytest.mark.parametrize("change", SAME)
def test_other_words_for_the_same(tmp_path: Path, change: str) -> None:
    assert_all(0, *pair(tmp_path, ATTENTION, SAID, SAID | SAME[change]))


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "regex"])
def test_adapters_of_experts(tmp_path: Path, change: str) -> None:
    said = adapter_config()
    fields = CHANGES[change]
    if change == "parameters":
        fields = {"target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj", "mlp.router"]}
    assert_all(1, *pair(tmp_path, EXPERTS, said, said | fields))


def test_a_missing_file_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = pair(tmp_path, ATTENTION, SAID, None)
    assert_all(1, a, b)
    assert "adapter_config.json: adapter_config: only in" in capsys.readouterr().out


def test_what_neither_states_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_all(0, *pair(tmp_path, ATTENTION, None, None))
    assert "not compared: neither side has adapter_config.json" in capsys.readouterr().out
    bare = {key: value for key, value in SAID.items() if key != "lora_alpha"}
    a, b = pair(tmp_path, ATTENTION, bare, bare)
    assert main(["diff", a, b, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_compared"] == ["neither side states lora_alpha for 1 modules"]


def test_wrapped_parameters_of_no_known_layout_have_a_generation(tmp_path: Path) -> None:
    at = PREFIX + "layers.0.odd.experts."
    tensors = {at + "lora_A.weight": torch.ones(6, 4), at + "lora_B.weight": torch.ones(4, 6)}
    said = SAID | {"target_parameters": ["odd.experts.w"], "r": 6}
    assert_all(1, *pair(tmp_path, tensors, said, said | {"peft_version": "0.18.1"}))
    assert_all(0, *pair(tmp_path, tensors, said, said | {"peft_version": "0.19.2"}))


def test_convert_verify_reads_the_file_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = str(write_adapter(tmp_path / "a", EXPERTS, adapter_config()))
    words = ["convert", a, str(tmp_path / "b"), "--to", "nemo", "--verify"]
    assert main(words) == 0
    monkeypatch.setattr(lazysd.Checkpoint, "save", _saving_another_alpha(lazysd.Checkpoint.save))
    assert main([*words, "--overwrite"]) == 1


def _saving_another_alpha(save: Any) -> Any:
    def wrong(self: Any, dst: Any, **options: Any) -> Any:
        plan = save(self, dst, **options)
        path = Path(dst) / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 80}))
        return plan

    return wrong


def test_words_say_what_was_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {expert_key(e, w): torch.randn(4, 4) for e in range(3) for w in ("gate", "up", "down")}
    config = {"model_type": "qwen3_moe", "num_experts": 3}
    src, out = str(write(tmp_path / "src", tensors, config=config)), str(tmp_path / "out")
    assert main(["convert", src, out, "--to", "nemo", "--verify"]) == 0
    assert f"verified: {out} holds {src} as layout nemo, 2 tensors" in capsys.readouterr().out
    assert main(["diff", src, out, "--no-values"]) == 0
    assert "9 tensors of equal shape and dtype; their values were not looked at" in capsys.readouterr().out
    assert main(["diff", src, out, "--no-values", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["values_compared"] is False
    down = PREFIX + "layers.0.mlp.experts.0.down_proj."
    lora = {down + "lora_A.weight": torch.ones(2, 4), down + "lora_B.weight": torch.ones(4, 2)}
    tensors[expert_key(0, "down")].fill_(1)
    adapter = str(write_adapter(tmp_path / "x", lora, SAID | {"target_modules": ["down_proj"]}))
    plain = str(write(tmp_path / "plain", {"model.layers.0.mlp.experts.0.down_proj.weight": torch.ones(4, 4)}))
    capsys.readouterr()
    code = main(["merge", plain, adapter, str(tmp_path / "merged"), "--verify"])
    said = capsys.readouterr()
    if code == 0:
        assert "equals" not in said.out
        assert f"holds {plain} merged with {adapter}" in said.out
    else:
        pytest.fail(said.err)


def test_names_reach_a_terminal_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ugly = "a\x1b[2K\nverified: all"
    one = str(write(tmp_path / "1", {ugly: torch.zeros(2)}))
    other = str(write(tmp_path / "2", {ugly: torch.ones(2)}))
    for words in (["diff", one, other], ["verify", one, "--against", other]):
        assert main(words) == 1
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "\nverified" not in out

"""peft 0.18.1, the last to fold LoRA of grouped experts the old way. Run by `make test-peft018`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from checkpoints import assert_same
from lora_adapters import adapter_config, experts_at, folded, read_json, write_adapter
from peft_models import (
    ALPHA,
    LAYERS,
    RANK,
    attention_lora,
    in_float64,
    largest_error,
    logits,
    merged_by_peft,
    our_adapter,
    random_native,
    tiny_model,
    with_peft,
)
from safetensors.torch import load_file

import lazysd
from lazysd.merging import merge

# peft 0.18 does not know fields of adapter_config.json that later versions write, says so, and leaves them out
pytestmark = pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")

ROUNDING = 2e-7


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


def test_this_is_peft_018() -> None:
    assert peft.__version__.startswith("0.18.")


@pytest.mark.parametrize("rslora", [False, True])
def test_what_we_write_is_what_peft_merges(model: Any, saved: Path, tmp_path: Path, rslora: bool) -> None:
    native = random_native(model) | attention_lora(model)
    folder = our_adapter(tmp_path, native, "peft-0.18", use_rslora=rslora)
    exact = in_float64(model, native, ALPHA / RANK ** (0.5 if rslora else 1))
    assert largest_error(model.state_dict(), exact) > 0.05
    assert largest_error(merged_by_peft(model, folder), exact) < ROUNDING
    ours = merge(lazysd.open(saved), lazysd.open(folder))
    assert largest_error(ours.convert("hf-fused"), exact) < ROUNDING
    ours.save(tmp_path / "merged")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(loaded), logits(with_peft(model, folder)), rtol=1e-4, atol=1e-5)


def test_the_new_generation_is_refused_or_wrong_here(model: Any, tmp_path: Path) -> None:
    """What a conversion is for: peft 0.18 cannot read what later ones write; where it can, it merges other weights."""
    native = random_native(model)
    write_adapter(tmp_path / "a", folded(native, "peft-0.19"), adapter_config("peft-0.19", r=RANK))
    with pytest.raises(RuntimeError, match="size mismatch"):
        merged_by_peft(model, tmp_path / "a")
    square = tiny_model(hidden=32, inner=32)
    native = random_native(square, wrapped=("down",))
    exact = in_float64(square, native, ALPHA / RANK)
    said = adapter_config("nemo", r=RANK, lora_alpha=ALPHA, target_parameters=["mlp.experts.down_proj"])
    for generation, wrong in (("peft-0.19", True), ("peft-0.18", False)):
        write_adapter(tmp_path / generation, folded(native, generation), said)
        assert (largest_error(merged_by_peft(square, tmp_path / generation), exact) > 0.05) == wrong


def test_a_wrong_fold_order_is_noticed(model: Any, tmp_path: Path) -> None:
    native = random_native(model)
    folder = our_adapter(tmp_path, native, "peft-0.18")
    tensors = load_file(folder / "adapter_model.safetensors")
    for layer in range(LAYERS):
        key = experts_at(layer) + "lora_B.weight"
        tensors[key] = (
            native[experts_at(layer) + "lora_down_A"].transpose(0, 1).reshape(tensors[key].shape).contiguous()
        )
    write_adapter(folder, tensors, read_json(folder / "adapter_config.json"))
    assert largest_error(merged_by_peft(model, folder), in_float64(model, native, ALPHA / RANK)) > 0.05


@pytest.mark.parametrize("wrapped", ["gate_up", "down"])
def test_one_parameter_alone(model: Any, tmp_path: Path, wrapped: str) -> None:
    native = random_native(model, wrapped=(wrapped,))
    folder = our_adapter(tmp_path, native, "peft-0.18")
    assert largest_error(merged_by_peft(model, folder), in_float64(model, native, ALPHA / RANK)) < ROUNDING


def test_rank_and_alpha_patterns(model: Any, tmp_path: Path) -> None:
    native = random_native(model, r_down=5)
    said = {"rank_pattern": {"mlp.experts.down_proj": 5}, "alpha_pattern": {"mlp.experts.gate_up_proj": 3}}
    folder = our_adapter(tmp_path, native, "peft-0.18", **said)
    exact = in_float64(model, native, lambda name: ALPHA / 5 if "down" in name else 3 / RANK)
    assert largest_error(merged_by_peft(model, folder), exact) < ROUNDING


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"target_parameters": ["mlp.experts.down_proj"]}], ids=str
)
def test_what_peft_writes(model: Any, saved: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Read, converted away and back to the same bytes; merged from either to what peft merges."""
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    given = {"r": RANK, "lora_alpha": ALPHA, "target_parameters": parameters, "target_modules": ["q_proj"]} | options
    torch.manual_seed(4)
    made = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(task_type="CAUSAL_LM", **given))
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(tmp_path / "a")
    assert lazysd.open(tmp_path / "a").layout == "peft-0.18"
    exact = {key: tensor.double() for key, tensor in merged_by_peft(model, tmp_path / "a").items()}
    lazysd.open(tmp_path / "a").convert("peft").save(tmp_path / "new")
    assert lazysd.open(tmp_path / "new").layout == "peft-0.19"
    lazysd.open(tmp_path / "new").convert("peft-0.18").save(tmp_path / "back")
    assert_same(lazysd.open(tmp_path / "back"), load_file(tmp_path / "a" / "adapter_model.safetensors"))
    assert torch.equal(logits(with_peft(model, tmp_path / "back")), logits(made.eval()))
    for folder in ("a", "new"):
        ours = merge(lazysd.open(saved), lazysd.open(tmp_path / folder), to="hf-fused")
        assert largest_error(ours, exact) < 2 * ROUNDING


@pytest.mark.parametrize("name", ["peft_paramwrapper_r3", "lora_paramwrapper_peft0212_r3", "peft_paramwrapper_0181_r3"])
def test_golden_adapters_in_peft_018(golden: Path, tmp_path: Path, name: str) -> None:
    """What peft 0.21 wrote loads here after conversion, its adapter_config.json with fields of the future included."""
    base = transformers.AutoModelForCausalLM.from_pretrained(golden / "qwen3_moe_tiny", dtype=torch.float32)
    lazysd.open(golden / name).convert("peft-0.18").save(tmp_path / "a")
    wide = lazysd.open(golden / "qwen3_moe_tiny").map(lambda t: t.to(torch.float32))
    ours = merge(wide, lazysd.open(golden / name), to="hf-fused")
    theirs = {key: tensor.double() for key, tensor in merged_by_peft(base, tmp_path / "a").items()}
    exact = {key: node.materialize().double() for key, node in wide.convert("hf-fused").items()}
    assert largest_error(theirs, exact) > 0.1
    assert largest_error(ours, theirs) < 2e-6


def test_what_peft_018_merged_in_the_golden_file(golden: Path, tmp_path: Path) -> None:
    """The golden file is what this very version computes."""
    base = transformers.AutoModelForCausalLM.from_pretrained(golden / "qwen3_moe_tiny", dtype=torch.float32)
    tensors = load_file(golden / "lora_paramwrapper_nemo_r3.safetensors")
    write_adapter(tmp_path / "a", tensors, adapter_config("peft-0.18", r=RANK, lora_alpha=ALPHA))
    theirs = merged_by_peft(base, tmp_path / "a")
    for short, wanted in load_file(golden / "merged_expected_r3.safetensors").items():
        found = theirs["model.layers.0.mlp.experts." + short.rsplit(".", 1)[-1]]
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)

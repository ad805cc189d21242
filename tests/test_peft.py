"""Real PEFT (0.21 here) reads what we write and merges it to the same weights; we read what it writes."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from checkpoints import assert_same
from lora_adapters import adapter_config, apart, experts_at, folded, read_json, write_adapter
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
from lazysd.errors import LayoutError
from lazysd.merging import merge
from lazysd.peft.config import AdapterConfig

# peft looks for the keys of rank_pattern among modules only, finds those of parameters nowhere, and applies them
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")

ROUNDING = 2e-7  # weights are below 1, so a unit in the last place of float32 is 6e-8 at most
PARAMETERS = ("gate_up", "down")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("rslora", [False, True])
def test_what_we_write_is_what_peft_merges(model: Any, saved: Path, tmp_path: Path, rslora: bool) -> None:
    """Four witnesses: float64 by hand, PEFT's merge, our merge, and the logits with the adapter active."""
    native = random_native(model) | attention_lora(model)
    folder = our_adapter(tmp_path, native, "peft-0.19", use_rslora=rslora)
    exact = in_float64(model, native, ALPHA / RANK ** (0.5 if rslora else 1))
    assert largest_error(model.state_dict(), exact) > 0.05  # the adapter does something
    theirs = merged_by_peft(model, folder)
    assert largest_error(theirs, exact) < ROUNDING
    ours = merge(lazysd.open(saved), lazysd.open(folder))
    assert largest_error(ours.convert("hf-fused"), exact) < ROUNDING
    ours.save(tmp_path / "merged")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    active = logits(with_peft(model, folder))
    assert (active - logits(model)).abs().max() > 1e-3
    torch.testing.assert_close(logits(loaded), active, rtol=1e-4, atol=1e-5)


def test_a_wrong_fold_order_is_noticed(model: Any, tmp_path: Path) -> None:
    """Columns of lora_B expert-major instead of rank-major: PEFT loads them without a word, and weights are wrong."""
    native = random_native(model)
    folder = our_adapter(tmp_path, native, "peft-0.19")
    tensors = load_file(folder / "adapter_model.safetensors")
    for layer in range(LAYERS):
        key = experts_at(layer) + "lora_B.weight"
        right = native[experts_at(layer) + "lora_down_B"].permute(2, 0, 1).reshape(tensors[key].shape)
        assert not torch.equal(right, tensors[key])
        tensors[key] = right.contiguous()
    write_adapter(folder, tensors, read_json(folder / "adapter_config.json"))
    assert largest_error(merged_by_peft(model, folder), in_float64(model, native, ALPHA / RANK)) > 0.05


def test_a_wrong_generation_is_noticed(model: Any, tmp_path: Path) -> None:
    """Where shapes differ PEFT refuses; where they do not, it merges wrong weights, and this comparison sees it."""
    native = random_native(model)
    write_adapter(tmp_path / "a", folded(native, "peft-0.18"), adapter_config(r=RANK))
    with pytest.raises(RuntimeError, match="size mismatch"):
        merged_by_peft(model, tmp_path / "a")
    square = tiny_model(hidden=32, inner=32)
    native = random_native(square, wrapped=("down",))
    said = adapter_config(r=RANK, lora_alpha=ALPHA, target_parameters=["mlp.experts.down_proj"])
    exact = in_float64(square, native, ALPHA / RANK)
    for generation, wrong in (("peft-0.18", True), ("peft-0.19", False)):
        write_adapter(tmp_path / generation, folded(native, generation), said)
        assert (largest_error(merged_by_peft(square, tmp_path / generation), exact) > 0.05) == wrong
    lost = {key: t for key, t in said.items() if key != "peft_version"}
    write_adapter(tmp_path / "lost", folded(native, "peft-0.18"), lost)
    with pytest.raises(LayoutError, match="state it"):
        lazysd.open(tmp_path / "lost").convert("peft-0.19")
    lazysd.open(tmp_path / "lost").convert("peft-0.19", source="peft-0.18").save(tmp_path / "moved")
    assert largest_error(merged_by_peft(square, tmp_path / "moved"), exact) < ROUNDING


@pytest.mark.parametrize("wrapped", PARAMETERS)
def test_one_parameter_alone(model: Any, tmp_path: Path, wrapped: str) -> None:
    """NeMo's config names both parameters; what we write names the one that is there, so that PEFT nests nothing."""
    native = random_native(model, wrapped=(wrapped,))
    folder = our_adapter(tmp_path, native, "peft-0.19")
    assert largest_error(merged_by_peft(model, folder), in_float64(model, native, ALPHA / RANK)) < ROUNDING


@pytest.mark.parametrize("square", [False, True])
def test_other_parameters_in_other_layers(model: Any, tmp_path: Path, square: bool) -> None:
    """With short names PEFT would wrap both parameters in both layers and look for other keys."""
    here = tiny_model(hidden=32, inner=32) if square else model
    native = random_native(here, layers=(0,)) | random_native(here, layers=(1,), wrapped=("gate_up",))
    folder = our_adapter(tmp_path, native, "peft-0.19")
    assert largest_error(merged_by_peft(here, folder), in_float64(here, native, ALPHA / RANK)) < ROUNDING


def test_rank_and_alpha_patterns(model: Any, saved: Path, tmp_path: Path) -> None:
    native = random_native(model, r_down=5) | attention_lora(model)
    said = {"rank_pattern": {"mlp.experts.down_proj": 5}, "alpha_pattern": {"layers.1.mlp.experts.gate_up_proj": 3}}
    folder = our_adapter(tmp_path, native, "peft-0.19", **said)

    def scale(name: str) -> float:
        if "layers.1.mlp.experts.gate_up_proj" in name:
            return 3 / RANK
        return ALPHA / (5 if "experts.down_proj" in name else RANK)

    exact = in_float64(model, native, scale)
    assert largest_error(merged_by_peft(model, folder), exact) < ROUNDING
    assert largest_error(merge(lazysd.open(saved), lazysd.open(folder), to="hf-fused"), exact) < ROUNDING


@pytest.mark.parametrize("rslora", [False, True])
def test_merge_rank_is_what_peft_needs(model: Any, saved: Path, tmp_path: Path, rslora: bool) -> None:
    """Per-expert LoRA whose gate and up differ, at twice the rank: patterns say so, and the weights are the same."""
    factors = apart(random_native(model))
    for number, key in enumerate(key for key in factors if "up_proj.lora_A" in key):
        factors[key] = 0.1 * torch.randn(factors[key].shape, generator=torch.Generator().manual_seed(number))
    said = adapter_config("peft-per-expert", r=RANK, lora_alpha=ALPHA, use_rslora=rslora)
    write_adapter(tmp_path / "a", factors, said)
    by_weight = merge(lazysd.open(saved), lazysd.open(tmp_path / "a"), to="hf-fused")
    exact = {key: node.materialize().double() for key, node in by_weight.items()}
    by = ALPHA / RANK ** (0.5 if rslora else 1)
    up = "model.layers.1.mlp.experts.gate_up_proj"
    a, b = (factors[f"{experts_at(1)}4.up_proj.lora_{x}.weight"].double() for x in "AB")
    wanted = model.state_dict()[up][4, 24:].double() + by * (b @ a)
    assert float((exact[up][4, 24:] - wanted).abs().max()) < ROUNDING
    lazysd.open(tmp_path / "a").convert("peft-0.19", merge_rank=True).save(tmp_path / "b")
    assert largest_error(merged_by_peft(model, tmp_path / "b"), exact) < 2 * ROUNDING


def test_per_expert_is_what_peft_itself_converts(model: Any, tmp_path: Path) -> None:
    """PEFT loads adapters of transformers 4 by merging gate and up at twice the rank, as merge_rank does."""
    native = random_native(model)
    folder = our_adapter(tmp_path, native, "peft-per-expert")
    assert set(lazysd.open(folder)) == set(apart(native))
    exact = in_float64(model, native, ALPHA / RANK)
    assert largest_error(merged_by_peft(model, folder), exact) < 2 * ROUNDING


# what PEFT writes


def trained(model: Any, folder: Path, **options: Any) -> Any:
    """An adapter by PEFT itself, random instead of trained, saved; returns PEFT's model."""
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    given = {"r": RANK, "lora_alpha": ALPHA, "target_parameters": parameters, "target_modules": ["q_proj"]} | options
    torch.manual_seed(4)
    made = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(task_type="CAUSAL_LM", **given))
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(folder)
    return made.eval()


@pytest.mark.parametrize("middle", ["nemo", "peft-0.18", "peft-per-expert"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"mlp.experts.down_proj": 5}},
        {"target_parameters": ["mlp.experts.down_proj"], "target_modules": []},
        {"target_parameters": ["mlp.experts.gate_up_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["both", "patterns", "down", "gate_up"],
)
def test_what_peft_writes_comes_back(
    model: Any, saved: Path, tmp_path: Path, middle: str, options: dict[str, Any]
) -> None:
    made = trained(model, tmp_path / "a", **options)
    ckpt = lazysd.open(tmp_path / "a")
    assert ckpt.layout == "peft-0.19"
    ckpt.convert(middle).save(tmp_path / "middle")
    lazysd.open(tmp_path / "middle").convert("peft").save(tmp_path / "back")
    assert_same(lazysd.open(tmp_path / "back"), load_file(tmp_path / "a" / "adapter_model.safetensors"))
    again = with_peft(model, tmp_path / "back")
    assert torch.equal(logits(again), logits(made))
    exact = {key: tensor.double() for key, tensor in merged_by_peft(model, tmp_path / "a").items()}
    for folder in ("a", "middle"):
        ours = merge(lazysd.open(saved), lazysd.open(tmp_path / folder), to="hf-fused")
        assert largest_error(ours, exact) < 2 * ROUNDING


@pytest.mark.parametrize("name", ["peft_paramwrapper_0181_r3", "peft_paramwrapper_r3", "lora_paramwrapper_peft0212_r3"])
def test_golden_adapters_in_peft(golden: Path, tmp_path: Path, name: str) -> None:
    """What peft 0.18 wrote loads in this PEFT after conversion, and merges to what we merge from the original."""
    base = transformers.AutoModelForCausalLM.from_pretrained(golden / "qwen3_moe_tiny", dtype=torch.float32)
    lazysd.open(golden / name).convert("peft").save(tmp_path / "a")
    wide = lazysd.open(golden / "qwen3_moe_tiny").map(lambda t: t.to(torch.float32))
    ours = merge(wide, lazysd.open(golden / name), to="hf-fused")
    theirs = {key: tensor.double() for key, tensor in merged_by_peft(base, tmp_path / "a").items()}
    exact = {key: node.materialize().double() for key, node in wide.convert("hf-fused").items()}
    assert largest_error(theirs, exact) > 0.1
    assert largest_error(ours, theirs) < 2e-6  # weights up to 10


def test_patterns_match_as_in_peft() -> None:
    from peft.utils.other import get_pattern_key

    names = ["model.layers.1.mlp.experts.down_proj", "model.layers.11.mlp.experts.down_proj", "lm_head"]
    keys = ["mlp.experts.down_proj", "down_proj", "layers.1.mlp.experts.down_proj", r".*\.1\..*", "experts", "lm_head"]
    keys += [r"model\.layers\.1\.mlp\.experts\.down_proj", "proj", "^model.*proj$", r"layers\.\d+\.mlp.*down_proj"]
    for name in names:
        for first in keys:
            for second in keys:
                pattern = {first: 5, second: 6}
                wanted = pattern.get(get_pattern_key(list(pattern), name), 7)
                assert AdapterConfig({"r": 7, "rank_pattern": pattern}).rank(name) == wanted, (name, first, second)


def test_a_missing_key_fails_these_tests(model: Any, tmp_path: Path) -> None:
    """PEFT only warns about keys it does not find, and then applies nothing."""
    folder = our_adapter(tmp_path, random_native(model), "peft-0.19")
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {key.replace("mlp.experts", "mlp.specialists"): tensor for key, tensor in tensors.items()}
    write_adapter(folder, renamed, read_json(folder / "adapter_config.json"))
    with pytest.raises(UserWarning, match="missing adapter keys"):
        with_peft(model, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = merged_by_peft(model, folder)
    assert largest_error(merged, {key: t.double() for key, t in model.state_dict().items()}) == 0

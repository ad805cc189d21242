"""Merging what people bring: ties, PEFT's own base_layer and adapter names, quantised bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from checkpoints import bits, write
from lora_adapters import read_json, write_adapter
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError
from lazysd.merging import merge

AT = "base_model.model.model."
Q = AT + "layers.0.self_attn.q_proj."
SAID = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "peft_version": "0.21.2"}
TIED = {"model_type": "qwen3", "tie_word_embeddings": True}


def base_tensors(tied: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    made = {
        "model.embed_tokens.weight": torch.randn(16, 8),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(8, 8),
    }
    return made if tied else made | {"lm_head.weight": torch.randn(16, 8)}


def q_lora() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {Q + "lora_A.weight": torch.randn(2, 8), Q + "lora_B.weight": torch.randn(8, 2)}


def added(base: Any, lora: Any) -> torch.Tensor:
    a, b = lora[Q + "lora_A.weight"].double(), lora[Q + "lora_B.weight"].double()
    return base["model.layers.0.self_attn.q_proj.weight"].double() + 2 * b @ a


def opened(tmp_path: Path, base: Any, config: Any, lora: Any, said: Any) -> tuple[Any, Any]:
    write_adapter(tmp_path / "a", lora, said)
    return lazysd.open(write(tmp_path / "base", base, config=config)), lazysd.open(tmp_path / "a")


# ties


def test_a_tied_head_keeps_the_old_weight(tmp_path: Path) -> None:
    base, new = base_tensors(tied=True), torch.randn(16, 8)
    lora = q_lora() | {AT + "embed_tokens.weight": new}
    merged = merge(*opened(tmp_path, base, TIED, lora, SAID | {"modules_to_save": ["embed_tokens"]}))
    assert any("lm_head.weight keeps the base's weight" in remark for remark in merged.remarks)
    merged.save(tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(bits(found["lm_head.weight"]), bits(base["model.embed_tokens.weight"]))
    assert torch.equal(bits(found["model.embed_tokens.weight"]), bits(new))
    assert read_json(tmp_path / "out" / "config.json") == TIED | {"tie_word_embeddings": False}
    assert read_json(tmp_path / "base" / "config.json") == TIED


@pytest.mark.parametrize(
    ("config", "said", "unties"),
    [
        (TIED, {}, True),
        (TIED, {"ensure_weight_tying": True}, False),
        (TIED | {"tie_word_embeddings": False}, {}, False),
        ({"architectures": ["Qwen3ForCausalLM"]}, {}, True),
        ({"architectures": ["Qwen3Model"]}, {}, False),
        (None, {}, False),
        ({"text_config": {"tie_word_embeddings": True}}, {}, True),
    ],
)
def test_when_a_head_is_tied(tmp_path: Path, config: Any, said: Any, unties: bool) -> None:
    lora = q_lora() | {AT + "embed_tokens.weight": torch.randn(16, 8)}
    merged = merge(*opened(tmp_path, base_tensors(tied=True), config, lora, SAID | said))
    assert ("lm_head.weight" in merged) is unties
    assert (merged.config or {}).get("tie_word_embeddings", None) is (
        False if unties else (config or {}).get("tie_word_embeddings")
    )


def test_a_head_of_an_unknown_name_is_refused(tmp_path: Path) -> None:
    base = {"transformer.wte.weight": torch.randn(16, 8)}
    lora = {"base_model.model.transformer.wte.weight": torch.randn(16, 8)} | q_lora()
    base["model.layers.0.self_attn.q_proj.weight"] = torch.randn(8, 8)
    with pytest.raises(LayoutError, match=r"wte\.weight changes, and config\.json ties the head"):
        merge(*opened(tmp_path, base, TIED, lora, SAID))


def tied_model(folder: Path) -> Qwen3ForCausalLM:
    """A small model whose head is its embedding, saved."""
    config = Qwen3Config(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning")
def test_a_trained_embedding_in_a_tied_model_as_peft_merges_it(tmp_path: Path) -> None:
    model = tied_model(tmp_path / "base")
    lora = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    wrapped = peft.get_peft_model(model, lora)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn_like(parameter)
    wrapped.eval()
    wrapped.save_pretrained(tmp_path / "a")
    tokens = torch.arange(16).unsqueeze(0)
    with torch.no_grad():
        wanted = wrapped(input_ids=tokens).logits
    merge(lazysd.open(tmp_path / "base"), lazysd.open(tmp_path / "a")).save(tmp_path / "out")
    with torch.no_grad():
        found = Qwen3ForCausalLM.from_pretrained(tmp_path / "out").eval()(input_ids=tokens).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


TIED_TARGETS: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["embed_tokens"]},
    "both, tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "head": {"target_modules": ["lm_head"]},
}


@pytest.mark.filterwarnings("ignore:.*(tie|embedding layers):UserWarning")
@pytest.mark.parametrize("which", TIED_TARGETS)
def test_lora_on_tied_embeddings_gives_what_the_adapter_gives(tmp_path: Path, which: str) -> None:
    """PEFT's own merge adds to the one weight that embedding and head share, and so gives other logits: see below."""
    model = tied_model(tmp_path / "base")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, **TIED_TARGETS[which])).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter)
    wrapped.save_pretrained(tmp_path / "a")
    tokens = torch.arange(16).unsqueeze(0)
    with torch.no_grad():
        wanted = wrapped(input_ids=tokens).logits
    merge(lazysd.open(tmp_path / "base"), lazysd.open(tmp_path / "a")).save(tmp_path / "out")
    with torch.no_grad():
        found = Qwen3ForCausalLM.from_pretrained(tmp_path / "out").eval()(input_ids=tokens).logits
        theirs = wrapped.merge_and_unload()(input_ids=tokens).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(theirs, wanted, rtol=1e-2, atol=1e-2)


# PEFT's own keys


@pytest.mark.parametrize("end", ["base_layer.weight", "base_layer.bias"])
def test_base_layer_takes_the_place_of_the_weight_first(tmp_path: Path, end: str) -> None:
    base = base_tensors() | {"model.embed_tokens.bias": torch.zeros(3)}
    a, b = torch.randn(2, 16), torch.randn(8, 2)
    own = torch.randn(16, 8) if end.endswith("weight") else torch.randn(3)
    lora = q_lora() | {
        AT + "embed_tokens.lora_embedding_A": a,
        AT + "embed_tokens.lora_embedding_B": b,
        AT + "embed_tokens." + end: own,
    }
    said = SAID | {"target_modules": ["q_proj", "embed_tokens"]}
    merged = merge(*opened(tmp_path, base, None, lora, said))
    first = own if end.endswith("weight") else base["model.embed_tokens.weight"]
    wanted = first.double() + 2 * (b.double() @ a.double()).T
    torch.testing.assert_close(merged["model.embed_tokens.weight"].materialize().double(), wanted, rtol=1e-6, atol=1e-6)
    if end.endswith("bias"):
        assert torch.equal(merged["model.embed_tokens.bias"].materialize(), own)


def test_base_layer_and_a_whole_tensor_are_two_updates(tmp_path: Path) -> None:
    lora = q_lora() | {Q + "base_layer.weight": torch.ones(8, 8), Q + "weight": torch.ones(8, 8)}
    with pytest.raises(LayoutError, match="two updates of it"):
        merge(*opened(tmp_path, base_tensors(), None, lora, SAID))


@pytest.mark.parametrize("name", ["default", "my-adapter", "weight"])
def test_an_adapter_name_in_keys_is_read_as_what_it_is(tmp_path: Path, name: str) -> None:
    lora = q_lora()
    named = {key.replace(".weight", f".{name}.weight"): value for key, value in lora.items()}
    base, adapter = opened(tmp_path, base_tensors(), None, named, SAID)
    assert any(f"'{name}'" in remark for remark in adapter.remarks)
    assert set(adapter) == set(lora)
    found = merge(base, adapter)["model.layers.0.self_attn.q_proj.weight"].materialize()
    torch.testing.assert_close(found.double(), added(base_tensors(), lora), rtol=1e-6, atol=1e-6)


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    lora = q_lora()
    both = {
        key.replace(".weight", f".{name}.weight"): value.clone() for key, value in lora.items() for name in ("x", "y")
    }
    folder = write_adapter(tmp_path / "a", both, SAID)
    with pytest.raises(LayoutError, match="keys of several adapters: x, y"):
        lazysd.open(folder)


# quantised bases


@pytest.mark.parametrize(("said", "shown"), [({"quant_method": "awq", "bits": 4}, "awq"), (None, "awq")])
def test_a_packed_base_is_named(tmp_path: Path, said: Any, shown: str, capsys: Any) -> None:
    at = "model.layers.0.self_attn.q_proj."
    packed = {
        at + "qweight": torch.zeros(8, 1, dtype=torch.int32),
        at + "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        at + "scales": torch.ones(1, 8).half(),
    }
    base = write(
        tmp_path / "base", packed, config={"model_type": "llama", "quantization_config": said} if said else None
    )
    adapter = write_adapter(tmp_path / "a", q_lora(), SAID)
    assert main(["merge", str(base), str(adapter), str(tmp_path / "out")]) == 3
    error = capsys.readouterr().err
    assert f"the base is quantised ({shown})" in error
    assert "is this the adapter's base?" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool])
def test_factors_that_are_no_floats_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    lora = {key: value.to(dtype) for key, value in q_lora().items()}
    with pytest.raises(LayoutError, match="factors"):
        merge(*opened(tmp_path, base_tensors(), None, lora, SAID))


def test_float64_factors_over_a_float32_base(tmp_path: Path) -> None:
    base, lora = base_tensors(), {key: value.double() + 1e-12 for key, value in q_lora().items()}
    found = merge(*opened(tmp_path, base, None, lora, SAID))["model.layers.0.self_attn.q_proj.weight"].materialize()
    assert torch.equal(bits(found), bits(added(base, lora).float()))

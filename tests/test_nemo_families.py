"""The adapters of the other families against nemo-automodel's classes of the same names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from test_families_nemo import ADAPTERS, adapter, published
from tiny_moe import saved

import lazysd
from lazysd import testing
from lazysd.adapters import nemo
from lazysd.errors import LayoutError
from lazysd.testing import StateDict

pytest.importorskip("nemo_automodel")

CASES = {
    "qwen2_moe": nemo.Qwen3MoeStateDictAdapter,
    "deepseek_v2": nemo.DeepSeekV3StateDictAdapter,
    "deepseek_v3": nemo.DeepSeekV3StateDictAdapter,
    "deepseek_v32": nemo.DeepSeekV32StateDictAdapter,
    "glm4_moe": nemo.Glm4MoeStateDictAdapter,
    "glm4_moe_lite": nemo.Glm4MoeStateDictAdapter,
    "glm_moe_dsa": nemo.GlmMoeDsaStateDictAdapter,
    "ernie4_5_moe": nemo.Ernie4_5_MoeStateDictAdapter,
    "hy_v3": nemo.HYV3StateDictAdapter,
    "laguna": nemo.LagunaStateDictAdapter,
    "qwen3_next": nemo.Qwen3NextStateDictAdapter,
    "minimax_m2": nemo.MiniMaxM2StateDictAdapter,
}
FP8 = ("deepseek_v3", "deepseek_v32", "minimax_m2")
DTYPES = (torch.float32, torch.bfloat16)


def pair(model_type: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """(theirs, ours), of the same configs."""
    theirs = adapter(model_type, dtype)
    return theirs, CASES[model_type](theirs.config, theirs.moe_config, theirs.backend, dtype=dtype)


def checkpoint_of(model_type: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    hf = {key: tensor for key, tensor in published(model_type)[0].items() if not key.startswith("mtp.")}
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in hf.items()}


def cloned(tensors: Any) -> dict[str, Any]:
    return {key: tensor.clone() for key, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model_type", CASES)
def test_equals_nemo_both_ways(model_type: str, dtype: torch.dtype) -> None:
    theirs, ours = pair(model_type, dtype)
    assert type(ours).__name__ == ADAPTERS[model_type][1]
    shared = [kind.__name__ for kind in type(theirs).__mro__ if kind in type(ours).__mro__]
    assert shared[:2] == ["MoESplitExpertsStateDictMixin", "StateDictAdapter"]
    assert ours.supports_low_memory_dcp_load == theirs.supports_low_memory_dcp_load
    hf = checkpoint_of(model_type, dtype)
    native = theirs.from_hf(cloned(hf))
    assert_same(ours.from_hf(hf), native)
    back = theirs.to_hf(cloned(native))
    assert_same(ours.to_hf(native), back)
    assert_same(back, {key: t.float() if back[key].dtype == torch.float32 else t for key, t in hf.items()})
    assert sorted(ours.get_hf_state_dict_keys(native)) == sorted(back)
    for key, tensor in native.items():
        assert_same(
            dict(ours.convert_single_tensor_to_hf(key, tensor)), dict(theirs.convert_single_tensor_to_hf(key, tensor))
        )
    only = r".*experts.*"
    assert_same(ours.to_hf(native, exclude_key_regex=only), theirs.to_hf(cloned(native), exclude_key_regex=only))


@pytest.mark.parametrize("model_type", CASES)
def test_lazy_in_lazy_out(model_type: str) -> None:
    """A Checkpoint comes back as one; the same keys and bytes as of tensors."""
    _, ours = pair(model_type, torch.float32)
    hf = checkpoint_of(model_type, torch.float32)
    lazy = {key: lazysd.from_torch(tensor) for key, tensor in hf.items()}
    made = testing.assert_reads_only(lambda: ours.from_hf(lazy))
    assert isinstance(made, lazysd.Checkpoint)
    assert_same({key: node.materialize() for key, node in made.items()}, ours.from_hf(hf))
    back = testing.assert_reads_only(lambda: ours.to_hf(made))
    assert_same({key: node.materialize() for key, node in back.items()}, ours.to_hf(ours.from_hf(hf)))


def sized(model_type: str, state_dict: StateDict) -> tuple[Any, Any]:
    """The adapters of a drawn state dict."""
    theirs, ours = pair(model_type, torch.float32)
    sizes = state_dict.sizes
    moe = SimpleNamespace(**{**vars(theirs.moe_config), "n_routed_experts": sizes["e"], "moe_inter_dim": sizes["i"]})
    for side in (theirs, ours):
        side.moe_config = moe
    theirs.config.num_hidden_layers = 20  # drawn layers are numbered up to 12
    return theirs, ours


@given(st.data())
@settings(max_examples=60)
def test_equals_nemo_on_random_state_dicts(data: st.DataObject) -> None:
    model_type = data.draw(st.sampled_from([name for name in CASES if name not in ("glm4_moe_lite", "deepseek_v2")]))
    drawn = testing.state_dicts(model_type, dtypes=[torch.float32], prefixes=["model."], max_layers=2)
    state_dict = data.draw(drawn)
    if model_type == "qwen3_next":
        state_dict = StateDict(
            {k: t for k, t in state_dict.items() if not k.startswith("mtp.")}, sizes=state_dict.sizes
        )
    theirs, ours = sized(model_type, state_dict)
    testing.assert_same_conversion(ours.from_hf, theirs.from_hf, state_dict)
    testing.assert_round_trip(ours.from_hf, ours.to_hf, state_dict, consumes=["*.experts.0.*.weight"])


@pytest.mark.parametrize("model_type", CASES)
def test_lora_equals_nemo(model_type: str) -> None:
    theirs, ours = pair(model_type, torch.float32)
    moe, at = theirs.moe_config, "base_model.model.model.layers.1.mlp.experts."
    experts, hidden, inner = moe.n_routed_experts, moe.dim, moe.moe_inter_dim
    generator = torch.Generator().manual_seed(0)
    native = {
        at + name: torch.randn(experts, *dims, generator=generator)
        for name, dims in {
            "lora_gate_and_up_A": (hidden, 3), "lora_gate_and_up_B": (3, 2 * inner),
            "lora_down_A": (inner, 3), "lora_down_B": (3, hidden),
        }.items()
    }  # fmt: skip
    for options in ({}, {"v4_compatible": True}):
        written = theirs.to_hf(cloned(native), **options)
        found = ours.to_hf(native, **options)
        under = {key.replace("base_model.model.", ""): tensor for key, tensor in found.items()}
        assert_same(under, {key.replace("base_model.model.", ""): tensor for key, tensor in written.items()})
        assert_same(ours.from_hf(found), native)


@pytest.mark.parametrize("model_type", FP8)
def test_fp8_has_the_keys_of_nemo(model_type: str) -> None:
    """Which weights are written as pairs; NeMo's scales are ones, to be loaded over, ours are the weights'."""
    theirs, ours = pair(model_type, torch.float32)
    native = ours.from_hf(checkpoint_of(model_type, torch.float32))
    native = {
        key: tensor for key, tensor in native.items() if "eh_proj" not in key
    }  # a vector here, for which NeMo fails
    written = theirs.to_hf(cloned(native), quantization=True)
    found = ours.to_hf(native, quantization=True)
    assert {k: (t.dtype, t.shape) for k, t in found.items()} == {k: (t.dtype, t.shape) for k, t in written.items()}
    back = ours.from_hf(found)
    assert sorted(back) == sorted(native)
    for key, tensor in native.items():
        torch.testing.assert_close(back[key], tensor, rtol=0.07, atol=0.01, msg=key)
    assert_same(back, {key: t.to(back[key].dtype) for key, t in theirs.from_hf(cloned(found)).items()})


def test_what_a_model_has_no_place_for_is_left_out_as_in_nemo(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lazysd")
    for model_type, extra in (("hy_v3", "model.layers.2.eh_proj.weight"), ("ernie4_5_moe", "model.mtp_block.0.weight")):
        theirs, ours = pair(model_type, torch.float32)
        hf = checkpoint_of(model_type, torch.float32) | {extra: torch.ones(2)}
        assert saved(model_type).config["num_hidden_layers"] == 2
        assert_same(ours.from_hf(hf), theirs.from_hf(cloned(hf)))
        assert extra in caplog.text


def test_two_keys_that_become_one_are_an_error() -> None:
    _, ours = pair("laguna", torch.float32)
    hf = checkpoint_of("laguna", torch.float32)
    key = next(key for key in hf if ".shared_expert." in key)
    with pytest.raises(LayoutError, match="both become"):
        ours.from_hf(hf | {key.replace(".shared_expert.", ".shared_experts."): hf[key]})

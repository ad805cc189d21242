"""The adapter against the published nemo-automodel, key by key and bit by bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lazysd
from lazysd.errors import LayoutError, MissingExpertsError
from lazysd.nemo.adapter import Qwen3MoeStateDictAdapter

BACKEND = SimpleNamespace(dispatcher="torch", experts="torch")


def moe(E: int = 3, I: int = 5, H: int | None = None, activation: str = "swiglu") -> SimpleNamespace:  # noqa: E741
    dim = {} if H is None else {"dim": H}
    return SimpleNamespace(n_routed_experts=E, moe_inter_dim=I, expert_activation=activation, expert_bias=False, **dim)


def nemo_adapter(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    pytest.importorskip("nemo_automodel")
    from nemo_automodel.components.models.qwen3_moe.state_dict_adapter import Qwen3MoeStateDictAdapter as Theirs

    return Theirs(None, config, BACKEND, dtype=dtype)


def hf_weights(
    E: int,
    H: int,
    I: int,  # noqa: E741
    dtype: torch.dtype,
    prefix: str = "model.",
    layers: int = 2,
    gated: bool = True,
) -> dict[str, torch.Tensor]:
    torch.manual_seed(E * 100 + H * 10 + I)
    weights = {f"{prefix}embed_tokens.weight": torch.randn(7, H).to(dtype)}
    for layer in range(layers):
        at = f"{prefix}layers.{layer}.mlp."
        weights[at + "gate.weight"] = torch.randn(E, H)
        for e in range(E):
            if gated:
                weights[f"{at}experts.{e}.gate_proj.weight"] = torch.randn(I, H).to(dtype)
            weights[f"{at}experts.{e}.up_proj.weight"] = torch.randn(I, H).to(dtype)
            weights[f"{at}experts.{e}.down_proj.weight"] = torch.randn(H, I).to(dtype)
    weights[f"{prefix}layers.0.self_attn.q_proj.weight"] = torch.randn(H, H).to(dtype)
    return weights


def native_lora(E: int, H: int, I: int, r: int, width: int | None = None) -> dict[str, torch.Tensor]:  # noqa: E741
    torch.manual_seed(r)
    at = "base_model.model.model.layers.1.mlp.experts."
    width = 2 * I if width is None else width
    return {
        at + "lora_gate_and_up_A": torch.randn(E, H, r),
        at + "lora_gate_and_up_B": torch.randn(E, r, width),
        at + "lora_down_A": torch.randn(E, I, r),
        at + "lora_down_B": torch.randn(E, r, H),
    }


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert sorted(ours) == sorted(theirs)
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype, key
        assert ours[key].shape == tensor.shape, key
        assert torch.equal(bits(ours[key]), bits(tensor)), key


SIZES = [(1, 2, 3), (3, 4, 5), (6, 32, 24), (4, 8, 8), (5, 80, 96)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("E", "H", "I"), SIZES)
def test_from_hf_and_to_hf_equal_nemo(E: int, H: int, I: int, dtype: torch.dtype) -> None:  # noqa: E741
    hf = hf_weights(E, H, I, dtype)
    theirs, ours = nemo_adapter(moe(E, I), dtype), Qwen3MoeStateDictAdapter(None, moe(E, I), BACKEND, dtype)
    native = theirs.from_hf(dict(hf))
    assert_same(ours.from_hf(hf), native)
    assert_same(ours.to_hf(native), theirs.to_hf(native))


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_hf_casts_experts_only_as_nemo_does(dtype: torch.dtype) -> None:
    hf = hf_weights(3, 4, 5, torch.bfloat16)
    native = Qwen3MoeStateDictAdapter(None, moe(), BACKEND, dtype).from_hf(hf)
    assert_same(native, nemo_adapter(moe(), dtype).from_hf(dict(hf)))
    assert native["model.layers.0.mlp.experts.down_projs"].dtype == dtype
    assert native["model.embed_tokens.weight"] is hf["model.embed_tokens.weight"]


@pytest.mark.parametrize("prefix", ["model.", "", "model.language_model."])
def test_prefixes(prefix: str) -> None:
    hf = hf_weights(3, 4, 5, torch.float32, prefix)
    theirs, ours = nemo_adapter(moe()), Qwen3MoeStateDictAdapter(None, moe(), BACKEND)
    native = theirs.from_hf(dict(hf))
    assert_same(ours.from_hf(hf), native)
    back = ours.to_hf(native)
    if prefix != "model.language_model.":  # NeMo's to_hf loses this one; ours keeps it
        assert_same(back, theirs.to_hf(native))
    assert sorted(back) == sorted(hf)


def test_the_prefix_of_the_last_from_hf_is_written() -> None:
    native = {"layers.0.mlp.experts.down_projs": torch.randn(3, 5, 4)}
    theirs, ours = nemo_adapter(moe()), Qwen3MoeStateDictAdapter(None, moe(), BACKEND)
    assert_same(ours.to_hf(native), theirs.to_hf(native))
    for adapter in (theirs, ours):
        adapter.from_hf(hf_weights(3, 4, 5, torch.float32, prefix=""))
    assert_same(ours.to_hf(native), theirs.to_hf(native))


def test_ungated_experts() -> None:
    hf, config = hf_weights(3, 4, 5, torch.float32, gated=False), moe(activation="relu2")
    theirs, ours = nemo_adapter(config), Qwen3MoeStateDictAdapter(None, config, BACKEND)
    native = theirs.from_hf(dict(hf))
    assert_same(ours.from_hf(hf), native)
    assert_same(ours.to_hf(native), theirs.to_hf(native))
    lora = native_lora(3, 4, 5, 2, width=5)
    for keywords in ({}, {"v4_compatible": True}):
        assert_same(ours.to_hf(lora, peft_layout="peft-0.19", **keywords), theirs.to_hf(lora, **keywords))
    assert_same(ours.from_hf(ours.to_hf(lora, v4_compatible=True)), lora)


@pytest.mark.parametrize("pattern", [r"model\.layers\.0", r".*down_proj", r"down_proj", r".*experts\.[02]\."])
def test_exclude_key_regex_matches_from_the_start(pattern: str) -> None:
    theirs, ours = nemo_adapter(moe()), Qwen3MoeStateDictAdapter(None, moe(), BACKEND)
    native = theirs.from_hf(hf_weights(3, 4, 5, torch.float32)) | native_lora(3, 4, 5, 2)
    made = ours.to_hf(native, exclude_key_regex=pattern, legacy_paramwrapper_layout=False)
    assert_same(made, theirs.to_hf(native, exclude_key_regex=pattern))


def test_convert_single_tensor() -> None:
    theirs, ours = nemo_adapter(moe()), Qwen3MoeStateDictAdapter(None, moe(), BACKEND)
    native = theirs.from_hf(hf_weights(3, 4, 5, torch.float32)) | native_lora(3, 4, 5, 2)
    for fqn, tensor in native.items():
        for keywords in ({"legacy_paramwrapper_layout": True}, {"v4_compatible": True}):
            made = ours.convert_single_tensor_to_hf(fqn, tensor, **keywords)
            assert isinstance(made, list)
            wanted = theirs.convert_single_tensor_to_hf(fqn, tensor, **keywords)
            assert [key for key, _ in made] == [key for key, _ in wanted]
            assert_same(dict(made), dict(wanted))
            if len(made) == 1 and made[0][0] == fqn:
                assert made[0][1] is tensor


@pytest.mark.parametrize("r", [1, 3, 4])
@pytest.mark.parametrize("legacy", [True, False])
def test_paramwrapper(r: int, legacy: bool) -> None:
    E, H, I = 6, 32, 24  # noqa: E741
    lora = native_lora(E, H, I, r)
    theirs, ours = nemo_adapter(moe(E, I, H)), Qwen3MoeStateDictAdapter(None, moe(E, I, H), BACKEND)
    folded = theirs.to_hf(lora, legacy_paramwrapper_layout=legacy)
    assert_same(ours.to_hf(lora, legacy_paramwrapper_layout=legacy), folded)
    assert_same(ours.to_hf(lora, peft_layout="peft-0.18" if legacy else "peft-0.19"), folded)
    assert_same(ours.from_hf(folded), theirs.from_hf(dict(folded)))
    assert_same(ours._convert_paramwrapper_to_native(folded), lora)
    for fqn, tensor in lora.items():
        made = dict(ours._convert_lora_to_paramwrapper(fqn, tensor, legacy_layout=legacy))
        assert_same(made, dict(theirs._convert_lora_to_paramwrapper(fqn, tensor, legacy_layout=legacy)))


def test_the_newest_peft_is_what_this_class_writes_unasked(caplog: pytest.LogCaptureFixture) -> None:
    lora = native_lora(6, 32, 24, 3)
    with caplog.at_level("INFO", logger="lazysd.nemo.lora"):
        made = Qwen3MoeStateDictAdapter(None, moe(6, 24), BACKEND).to_hf(lora)
    assert_same(made, nemo_adapter(moe(6, 24)).to_hf(lora))
    assert "peft-0.19, which PEFT 0.19.1 and later reads" in caplog.text
    older = Qwen3MoeStateDictAdapter(None, moe(6, 24), BACKEND, peft_layout="peft-0.18").to_hf(lora)
    assert_same(older, nemo_adapter(moe(6, 24)).to_hf(lora, legacy_paramwrapper_layout=True))


def test_the_golden_adapters(golden: Path) -> None:
    ours = Qwen3MoeStateDictAdapter(None, moe(6, 24, 32), BACKEND)
    native = dict(lazysd.open(golden / "lora_native_r3.safetensors"))
    native = {key: node.materialize() for key, node in native.items()}
    older = {"peft_layout": "peft-0.18"}
    for name, keywords in (("lora_paramwrapper_nemo_r3", older), ("lora_per_expert_nemo_r3", {"v4_compatible": True})):
        wanted = {k: node.materialize() for k, node in lazysd.open(golden / f"{name}.safetensors").items()}
        assert_same(ours.to_hf(native, **keywords), wanted)
        assert_same(ours.from_hf(wanted), native)


@pytest.mark.parametrize("generation", ["peft-0.18", "peft-0.19"])
def test_undecidable_lora_is_refused_unless_stated(generation: str) -> None:
    E, I, H = 2, 8, 8  # noqa: E741  - down fits both generations; gate/up would decide
    lora = {key: tensor for key, tensor in native_lora(E, H, I, 3).items() if "down" in key}
    ours = Qwen3MoeStateDictAdapter(None, moe(E, I, H), BACKEND)
    folded = ours.to_hf(lora, peft_layout=generation)
    with pytest.raises(LayoutError, match="cannot tell which ParamWrapper layout"):
        ours.from_hf(folded)
    assert_same(ours.from_hf(folded, peft_layout=generation), lora)
    ours._paramwrapper_layout_hint = "peft-0.18" if generation == "peft-0.18" else "peft-0.19.1"
    assert_same(ours.from_hf(folded), lora)
    whole = native_lora(E, H, I, 3)
    ours._paramwrapper_layout_hint = None
    assert_same(ours.from_hf(ours.to_hf(whole, peft_layout=generation)), whole)  # gate/up decides for both


def test_stated_and_found_generations_that_disagree_are_refused() -> None:
    ours = Qwen3MoeStateDictAdapter(None, moe(6, 24, 32), BACKEND)
    folded = ours.to_hf(native_lora(6, 32, 24, 3), peft_layout="peft-0.18")
    with pytest.raises(LayoutError, match=r"stated as peft-0\.19, but the shapes only fit peft-0\.18"):
        ours.from_hf(folded, peft_layout="peft-0.19")
    with pytest.raises(LayoutError, match="unknown ParamWrapper layout 'peft-1'"):
        ours.from_hf(folded, peft_layout="peft-1")
    with pytest.raises(LayoutError, match="contradict each other"):
        ours.from_hf(folded, peft_layout="peft-0.19", legacy_paramwrapper_layout=True)
    with pytest.raises(LayoutError, match="fit neither generation"):
        Qwen3MoeStateDictAdapter(None, moe(6, 20, 32), BACKEND).from_hf(folded)


def test_per_expert_lora() -> None:
    E, H, I = 3, 4, 5  # noqa: E741
    lora = native_lora(E, H, I, 2)
    theirs, ours = nemo_adapter(moe(E, I)), Qwen3MoeStateDictAdapter(None, moe(E, I), BACKEND)
    apart = theirs.to_hf(lora, v4_compatible=True)
    made = ours.to_hf(lora, v4_compatible=True)
    assert_same(made, apart)
    assert_same(ours.from_hf(apart), theirs.from_hf(dict(apart)))
    assert len({tensor.data_ptr() for tensor in made.values()}) == len(made)  # gate's and up's lora_A are two tensors
    apart["base_model.model.model.layers.1.mlp.experts.2.up_proj.lora_A.weight"][0, 0] += 1
    with pytest.raises(LayoutError, match=r"experts\.2\.up_proj\.lora_A"):  # NeMo would drop it in silence
        ours.from_hf(apart)


@pytest.mark.parametrize("lost", [["down_proj"], ["gate_proj", "up_proj"]])
def test_missing_experts(lost: list[str]) -> None:
    hf = {
        key: tensor
        for key, tensor in hf_weights(6, 4, 5, torch.float32).items()
        if not any(f"layers.1.mlp.experts.{e}.{name}" in key for e in (2, 4, 5) for name in lost)
    }
    ours = Qwen3MoeStateDictAdapter(None, moe(6), BACKEND)
    total, count = 36, 3 * len(lost)
    wanted = rf"{count}/{total} required weights not found.*Layers with experts: \[0, 1\].*experts\.2\.{lost[0]}"
    with pytest.raises(MissingExpertsError, match=wanted) as caught:
        ours.from_hf(hf)
    assert isinstance(caught.value, RuntimeError)
    with pytest.raises(RuntimeError, match=f"{count}/{total}"):
        nemo_adapter(moe(6)).from_hf(hf)


def test_errors_name_both_sides() -> None:
    ours = Qwen3MoeStateDictAdapter(None, moe(), BACKEND)
    key = "model.layers.0.mlp.experts.down_projs"
    with pytest.raises(ValueError, match=r"shape \[4, 5, 4\], expected \[3, 5, hidden\]"):
        ours.to_hf({key: torch.zeros(4, 5, 4)})
    with pytest.raises(ValueError, match=r"expected \[3, hidden, 10\]"):
        ours.to_hf({"model.layers.0.mlp.experts.gate_and_up_projs": torch.zeros(3, 4, 9)})
    hf = hf_weights(3, 4, 5, torch.float32) | {"model.layers.0.mlp.experts.1.gate_proj.bias": torch.zeros(5)}
    with pytest.raises(LayoutError, match=r"experts\.01\.gate_proj\.weight: numbers .* without leading zeros"):
        ours.from_hf(hf | {"model.layers.0.mlp.experts.01.gate_proj.weight": torch.zeros(5, 4)})
    biased = moe()
    biased.expert_bias = True
    with pytest.raises(NotImplementedError, match=r"experts\.1\.gate_proj\.bias"):
        Qwen3MoeStateDictAdapter(None, biased, BACKEND).from_hf(hf)


def test_inputs_are_left_alone_and_outputs_are_new_memory() -> None:
    hf = hf_weights(3, 4, 5, torch.float32)
    before = dict(hf)
    ours = Qwen3MoeStateDictAdapter(None, moe(), BACKEND)
    native = ours.from_hf(hf)
    assert hf == before
    back = ours.to_hf(native)
    for key, tensor in back.items():
        assert tensor.is_contiguous(), key
        if ".experts." in key:
            tensor.zero_()
    assert_same(ours.from_hf(hf), native)


def test_checkpoint_load_gives_views_to_load_through() -> None:
    hf = hf_weights(3, 4, 5, torch.float32)
    theirs, ours = nemo_adapter(moe()), Qwen3MoeStateDictAdapter(None, moe(), BACKEND)
    native = theirs.from_hf(dict(hf))
    empty = {key: torch.zeros_like(tensor) for key, tensor in native.items()}
    wanted = theirs.to_hf(empty, for_checkpoint_load=True)
    made = ours.to_hf(empty, for_checkpoint_load=True)
    for key, view in made.items():
        assert (view.shape, view.stride()) == (wanted[key].shape, wanted[key].stride()), key
        assert view.untyped_storage().data_ptr() == wanted[key].untyped_storage().data_ptr(), key
        view.copy_(hf[key])
    assert_same(empty, native)
    assert ours.view_loaded_native_keys == theirs.view_loaded_native_keys == set()
    assert ours.supports_low_memory_dcp_load
    assert theirs.supports_low_memory_dcp_load


def test_lazy_in_lazy_out(golden: Path) -> None:
    ckpt = lazysd.open(golden / "qwen3_moe_tiny")
    ours = Qwen3MoeStateDictAdapter(None, moe(6, 24), BACKEND, dtype=torch.bfloat16)
    native = ours.from_hf(ckpt)
    assert isinstance(native, lazysd.Checkpoint)
    plain = {key: node.materialize() for key, node in ckpt.items()}
    wanted = nemo_adapter(moe(6, 24), torch.bfloat16).from_hf(dict(plain))
    assert_same({key: node.materialize() for key, node in native.items()}, wanted)
    for key, node in native.items():
        if ".experts." not in key:
            assert node is ckpt[key]
    back = ours.to_hf(dict(native))
    assert {key: node.op for key, node in back.items()} == {
        key: node.op for key, node in ckpt.items()
    }  # its very leaves
    wide = Qwen3MoeStateDictAdapter(None, moe(6, 24), BACKEND).from_hf(ckpt)
    assert wide["model.layers.0.mlp.experts.down_projs"].dtype == torch.float32


def test_nemo_need_not_be_installed() -> None:
    code = (
        "import sys; sys.modules['nemo_automodel'] = None\n"
        "from types import SimpleNamespace as N\nimport torch\n"
        "from lazysd.adapters.nemo import Qwen3MoeStateDictAdapter as A\n"
        "a = A(None, N(n_routed_experts=1, moe_inter_dim=2, expert_activation='swiglu'), None)\n"
        "print(sorted(a.to_hf({'model.layers.0.mlp.experts.down_projs': torch.zeros(1, 2, 3)})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("['model.layers.0.mlp.experts.0.down_proj.weight']", "")


def test_nemos_own_config_class() -> None:
    pytest.importorskip("nemo_automodel")
    from nemo_automodel.components.moe.config import MoEConfig

    config = MoEConfig(
        n_routed_experts=3, n_shared_experts=0, n_activated_experts=1, n_expert_groups=1, n_limited_groups=1,
        train_gate=False, gate_bias_update_factor=0.0, aux_loss_coeff=0.0, score_func="softmax", route_scale=1.0,
        dim=4, inter_dim=5, moe_inter_dim=5, norm_topk_prob=True,
    )  # fmt: skip
    hf = hf_weights(3, 4, 5, torch.float32)
    assert_same(Qwen3MoeStateDictAdapter(None, config, BACKEND).from_hf(hf), nemo_adapter(config).from_hf(dict(hf)))


EXPERTS = "model.layers.0.mlp.experts."
STRANGERS = {
    "extra state": {EXPERTS + "_extra_state": torch.ones(1)},
    "GPTQ codes": {EXPERTS + "0.gate_proj.qweight": torch.ones(2)},
    "a scale of inputs": {EXPERTS + "0.gate_proj.input_scale": torch.ones(2)},
    "a fused key": {EXPERTS + "gate_up_proj": torch.ones(2)},
    "a bias": {EXPERTS + "1.gate_proj.bias": torch.ones(5)},
}


@pytest.mark.parametrize("extra", STRANGERS)
def test_what_else_stands_below_the_experts_passes_as_upstream_lets_it(extra: str) -> None:
    hf = hf_weights(3, 4, 5, torch.float32) | STRANGERS[extra]
    native = Qwen3MoeStateDictAdapter(None, moe(), BACKEND).from_hf(hf)
    assert_same(native, nemo_adapter(moe()).from_hf(dict(hf)))
    assert all(native[key] is value for key, value in STRANGERS[extra].items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_of_several_dtypes_is_cast_first(dtype: torch.dtype) -> None:
    hf = hf_weights(3, 4, 5, torch.float32)
    hf[EXPERTS + "1.gate_proj.weight"] = hf[EXPERTS + "1.gate_proj.weight"].half()
    ours = Qwen3MoeStateDictAdapter(None, moe(), BACKEND, dtype)
    assert_same(ours.from_hf(hf), nemo_adapter(moe(), dtype).from_hf(dict(hf)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_fp8_checkpoint_may_hold_an_expert_in_bf16(dtype: torch.dtype) -> None:
    hf = hf_weights(3, 4, 5, torch.bfloat16)
    mixed: dict[str, Any] = {}
    for key, weight in hf.items():
        if ".experts." in key and ".experts.1." not in key:
            mixed[key] = weight.to(torch.float8_e4m3fn)
            mixed[key + "_scale_inv"] = torch.full((1, 1), 0.5)
        else:
            mixed[key] = weight
    plain = {
        key: (value.float() * 0.5).to(dtype) if value.dtype == torch.float8_e4m3fn else value
        for key, value in mixed.items()
        if not key.endswith("_scale_inv")
    }
    ours = Qwen3MoeStateDictAdapter(None, moe(), BACKEND, dtype)
    assert_same(ours.from_hf(mixed), nemo_adapter(moe(), dtype).from_hf(plain))


def test_it_is_what_nemos_code_asks_for() -> None:
    from nemo_automodel.components.checkpoint.state_dict_adapter import StateDictAdapter
    from nemo_automodel.components.moe.state_dict_mixin import MoESplitExpertsStateDictMixin

    ours, theirs = Qwen3MoeStateDictAdapter(None, moe(), BACKEND), nemo_adapter(moe())
    assert isinstance(ours, StateDictAdapter)
    assert isinstance(ours, MoESplitExpertsStateDictMixin)
    for name in ("_expert_path_segment", "_v5_peft_target_parameters", "_hf_prefix", "_is_gated_moe"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("checkpoint_key_aliases", "supports_low_memory_dcp_load", "view_loaded_native_keys"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours._v5_peft_hf_expert_path_segment() == theirs._v5_peft_hf_expert_path_segment()
    assert ours.iter_checkpoint_load_parts({}) is theirs.iter_checkpoint_load_parts({}) is None
    for v4 in (False, True):
        module = "model.layers.0.self_attn.q_proj"
        assert ours.map_peft_target_module_to_hf(module, v4_compatible=v4) == module
    public = {name for name in dir(type(theirs)) if not name.startswith("__")}
    assert public <= set(dir(type(ours)))


def test_without_nemo_it_is_a_class_of_its_own() -> None:
    code = (
        "import sys; sys.modules['nemo_automodel'] = None\n"
        "import importlib.util; importlib.util.find_spec = lambda name, *a: None\n"
        "from lazysd.adapters.nemo import Qwen3MoeStateDictAdapter as A\n"
        "print([c.__module__.split('.')[0] for c in A.__mro__])\n"
        "print(A._v5_peft_hf_expert_path_segment(A.__new__(A)), A._expert_path_segment.fget(None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split("\n")[:2] == ["['lazysd', 'lazysd', 'builtins']", "mlp.experts mlp.experts"]


def test_keys_are_known_without_reading(tmp_path: Path) -> None:
    hf = hf_weights(12, 4, 5, torch.float32)
    ours, theirs = Qwen3MoeStateDictAdapter(None, moe(12), BACKEND), nemo_adapter(moe(12))
    native = ours.from_hf(hf)
    state = {**native, **native_lora(12, 4, 5, 2), EXPERTS + "_extra_state": torch.ones(1)}
    assert ours.get_hf_state_dict_keys(state) == theirs.get_hf_state_dict_keys(state)
    meta = {key: torch.empty_like(value, device="meta") for key, value in state.items()}
    assert ours.get_hf_state_dict_keys(meta) == ours.get_hf_state_dict_keys(state)


def test_parameters_keep_wanting_gradients() -> None:
    made = nemo_adapter(moe()).from_hf(hf_weights(3, 4, 5, torch.float32))
    native = {key: torch.nn.Parameter(value) for key, value in made.items()}
    ours, theirs = (a.to_hf(native) for a in (Qwen3MoeStateDictAdapter(None, moe(), BACKEND), nemo_adapter(moe())))
    assert {key: value.requires_grad for key, value in ours.items()} == {k: v.requires_grad for k, v in theirs.items()}
    frozen = {key: value.detach() for key, value in native.items()}
    assert not any(v.requires_grad for v in Qwen3MoeStateDictAdapter(None, moe(), BACKEND).to_hf(frozen).values())

"""lazysd.testing finds what is wrong with converters that others published: the tests and finds of docs/testing.md.

Each find stays until its authors mend it; a version without it makes the test fail, and the page is then to be told.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import Phase, find, given, settings
from standing_in import standing_in

import lazysd
from lazysd import testing
from lazysd.adapters.nemo import Qwen3MoeStateDictAdapter
from lazysd.testing import StateDict, assert_round_trip, assert_same_conversion, state_dicts
from lazysd.testing.comparing import difference

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")
STORIES = re.findall(
    r"^\*\*(.+?)\*\*.*?^```python\n(.*?)^```\n\n^```\n(.*?)^```",
    PAGE.partition("## Found in other people's converters")[2],
    flags=re.DOTALL | re.MULTILINE,
)
LIGHTNING = {"lightning.fabric.utilities.load": {"_NotYetLoadedTensor": torch.Tensor}}
STAND_INS: dict[str, tuple[list[str], dict[str, dict[str, Any]]]] = {  # package -> what it wants beyond torch
    "nemo_automodel": ([], {}),
    "torchtitan": (
        [f"torchtitan{inner}" for inner in ("", ".models", ".models.gpt_oss", ".protocols")],
        {
            "torchtitan.models.gpt_oss.model": {"GptOssModel": MagicMock()},
            "torchtitan.protocols.model": {"BaseModel": MagicMock()},
            "torchtitan.models.common": {"__path__": []},
            "torchtitan.models.common.decoder": {"Decoder": MagicMock()},
            "torchtitan.models.common.rope": {"CosSinRoPE": SimpleNamespace(Config=object)},
        },
    ),
    "litgpt": (
        ["litgpt", "litgpt.scripts"],
        {name: {"__path__": []} for name in ("lightning", "lightning.fabric", "lightning.fabric.utilities")}
        | LIGHTNING
        | {
            "litgpt": {"Config": object},
            "litgpt.config": {"Config": object},
            "litgpt.utils": dict.fromkeys(
                ("extend_checkpoint_dir", "incremental_save", "lazy_load", "save_config"), object
            ),
        },
    ),
    "torchtune": (["torchtune", "torchtune.models", "torchtune.models.gemma2"], {}),
}
QUICK = settings(
    max_examples=100, derandomize=True, database=None, deadline=None, phases=[Phase.generate, Phase.shrink]
)


@contextmanager
def importable(package: str) -> Iterator[None]:
    """The package's converters can be imported; the test is skipped where the package is not installed."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    with standing_in(*STAND_INS[package]):
        yield


def test_the_page_tells_six_finds() -> None:
    assert len(STORIES) == 6


@pytest.mark.parametrize(("title", "code", "printed"), STORIES, ids=[title.rstrip(".") for title, _, _ in STORIES])
def test_what_the_page_says_is_found(title: str, code: str, printed: str) -> None:
    """The block's test fails, with the message and the counterexample that the page prints."""
    names: dict[str, Any] = {}
    with importable(next(package for package in STAND_INS if f"from {package}." in code)):
        exec(compile(code, title, "exec"), names)
        test = next(function for name, function in names.items() if name.startswith("test_"))
        with pytest.raises((AssertionError, KeyError)) as caught:
            QUICK(test)()
    kind = "" if isinstance(caught.value, AssertionError) else f"{type(caught.value).__name__}: "
    told = "\n".join([kind + str(caught.value), *getattr(caught.value, "__notes__", ())])
    told = re.sub(r"(\w+)=lazysd", "lazysd", re.sub(r"^ {4}(?=\S)", "", told, flags=re.MULTILINE))
    for line in printed.splitlines():
        assert line.strip() in told, told


def adapter_classes() -> dict[str, Any]:
    """Every adapter of nemo-automodel that reads per-expert LoRA by its mixin, as far as it can be imported here."""
    if importlib.util.find_spec("nemo_automodel") is None:
        return {}
    models = importlib.import_module("nemo_automodel.components.models")
    mixin = importlib.import_module("nemo_automodel.components.moe.state_dict_mixin").MoESplitExpertsStateDictMixin
    made = {}
    for package in pkgutil.iter_modules(models.__path__):
        try:
            module = importlib.import_module(f"{models.__name__}.{package.name}.state_dict_adapter")
        except ImportError:  # no adapter, or one that wants more packages
            continue
        found = inspect.getmembers(module, lambda value: inspect.isclass(value) and issubclass(value, mixin))
        made |= {name: value for name, value in found if value.__module__ == module.__name__}
    return made


DROP_LORA = [
    "BailingMoeV2", "DeepSeekV3", "DeepSeekV32", "Ernie4_5_Moe", "Glm4Moe", "Glm5Next", "GlmMoeDsa", "HYV3",
    "HunyuanImage3", "HyMT2", "KimiLinear48B", "Laguna", "MiMoV2", "MiMoV2Flash", "MiniMaxM2", "MiniMaxM3", "Qwen3Moe",
    "Qwen3Next", "Qwen3OmniMoe",
]  # fmt: skip
DROP_SCALES = ["Qwen3Moe", "Glm4Moe", "HYV3", "Qwen3Next", "Laguna"]


def built(kind: Any, state_dict: StateDict) -> Any:
    """An adapter for these sizes."""
    sizes = state_dict.sizes
    moe = SimpleNamespace(
        n_routed_experts=sizes["e"], n_shared_experts=1, dim=sizes["h"], inter_dim=sizes["i"], expert_bias=False,
        moe_inter_dim=sizes["i"], expert_activation="swiglu", moe_latent_size=None, expert_dim=sizes["h"],
    )  # fmt: skip
    config = SimpleNamespace(
        hidden_size=sizes["h"], num_attention_heads=1, num_key_value_heads=1, head_dim=1, num_hidden_layers=20,
        num_nextn_predict_layers=0, tie_word_embeddings=False, first_k_dense_replace=0, mlp_only_layers=[],
    )  # fmt: skip
    config.text_config = config
    backend = SimpleNamespace(dispatcher="torch", experts="torch", gate_precision=None, linear="torch", attn="sdpa")
    return kind(config, moe, backend, dtype=torch.float32)


def smallest(strategy: Any, check: Callable[[StateDict], None]) -> tuple[StateDict, str]:
    """The smallest state dict that fails the check, and how."""

    def fails(state_dict: StateDict) -> str | None:
        try:
            check(state_dict)
        except AssertionError as error:
            return str(error)
        return None

    found = find(strategy, lambda state_dict: fails(state_dict) is not None, settings=QUICK)
    return found, str(fails(found))


def lora_check(kind: Any) -> Callable[[StateDict], None]:
    def check(state_dict: StateDict) -> None:
        adapter = built(kind, state_dict)
        assert_round_trip(adapter.from_hf, lambda native: adapter.to_hf(native, v4_compatible=True), state_dict)

    return check


LORA = state_dicts("qwen3_moe", "peft-per-expert", lora=True, dtypes=[torch.float32], prefixes=["model."])


@pytest.mark.parametrize("name", DROP_LORA)
def test_adapters_of_nemo_that_drop_the_lora_a_of_up(name: str) -> None:
    pytest.importorskip("nemo_automodel")
    found, message = smallest(LORA, lora_check(adapter_classes()[f"{name}StateDictAdapter"]))
    lost = "model.layers.0.mlp.experts.0.up_proj.lora_A.weight"
    assert f"{lost}: 1 of 1 elements differ" in message
    assert len(found) == 6
    assert f"'{lost}': ('F32', (1, 1))" in repr(found)
    again = eval(repr(found), {"lazysd": SimpleNamespace(testing=testing)})  # what is printed makes it again
    assert all(torch.equal(again[key], tensor) for key, tensor in found.items())


@given(LORA)
@settings(max_examples=20)
def test_ours_refuses_two_lora_a(state_dict: StateDict) -> None:
    """Grouped LoRA has one `lora_A` for gate and up: ours says so instead of dropping one."""
    adapter = built(Qwen3MoeStateDictAdapter, state_dict)
    pairs = [key for key in state_dict if key.endswith("up_proj.lora_A.weight")]
    gates = [state_dict[key.replace("up_proj", "gate_proj")] for key in pairs]
    same = all(difference(gate, state_dict[key]) is None for key, gate in zip(pairs, gates, strict=True))
    if not same:
        with pytest.raises(lazysd.errors.LayoutError, match="up_proj"):
            adapter.from_hf(state_dict)
        return
    assert_round_trip(adapter.from_hf, lambda native: adapter.to_hf(native, v4_compatible=True), state_dict)


def fp8_check(kind: Any, rtol: float = 0.0) -> Callable[[StateDict], None]:
    """Codes and a scale each load as what they stand for."""

    def check(state_dict: StateDict) -> None:
        adapter = built(kind, state_dict)
        scales = {key + "_scale_inv": torch.full((1, 1), 0.25) for key in state_dict}

        def dequantised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {key: tensors[key].float() * tensors[key + "_scale_inv"] for key in state_dict}

        assert_same_conversion(
            adapter.from_hf, lambda sd: adapter.from_hf(dequantised(sd)), state_dict | scales, rtol=rtol
        )

    return check


FP8 = state_dicts("qwen3_moe", dtypes=[torch.float8_e4m3fn], prefixes=["model."], scenery=False)


@pytest.mark.parametrize("name", DROP_SCALES)
def test_adapters_of_nemo_that_drop_fp8_scales(name: str) -> None:
    pytest.importorskip("nemo_automodel")
    found, message = smallest(FP8, fp8_check(adapter_classes()[f"{name}StateDictAdapter"]))
    assert "model.layers.0.mlp.experts.gate_and_up_projs: 1 of 2 elements differ" in message
    assert len(found) == 3


@given(FP8)
@settings(max_examples=20)
def test_ours_keeps_fp8_scales(state_dict: StateDict) -> None:
    fp8_check(Qwen3MoeStateDictAdapter, rtol=1e-30)(state_dict)  # exact, but for how a NaN is spelt

"""The published nemo-automodel's LoRA conversion against our layouts: the same keys and bits, both ways."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import assert_same, random_hf
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_adapters import experts_at, native_lora

import lazysd

adapter_module = pytest.importorskip("nemo_automodel.components.models.qwen3_moe.state_dict_adapter")

KEYWORDS: dict[str, dict[str, Any]] = {
    "peft-0.19": {},
    "peft-0.18": {"legacy_paramwrapper_layout": True},
    "peft-per-expert": {"v4_compatible": True},
}
SHAPES = [(1, 2, 3, 1), (3, 4, 5, 2), (6, 32, 24, 3), (6, 32, 24, 4), (4, 8, 8, 3), (4, 8, 4, 2), (2, 3, 7, 9)]


def nemo_adapter(E: int, H: int, I: int) -> Any:  # noqa: E741
    """The adapter as NeMo builds it; it reads a few numbers of its configs and nothing else."""
    moe = SimpleNamespace(n_routed_experts=E, dim=H, moe_inter_dim=I, expert_activation="swiglu", expert_bias=False)
    config = SimpleNamespace(num_experts=E, hidden_size=H, moe_intermediate_size=I)
    backend = SimpleNamespace(dispatcher="torch", experts="torch")
    return adapter_module.Qwen3MoeStateDictAdapter(config, moe, backend, dtype=torch.float32)


def check(E: int, H: int, I: int, r: int, layout: str, others: bool = False) -> None:  # noqa: E741
    native = native_lora(E, H, I, r, layers=(0, 5))
    if others:
        native |= {f"{experts_at(0)[:-12]}self_attn.q_proj.lora_{x}.weight": torch.randn(r, H) for x in "AB"}
    nemo = nemo_adapter(E, H, I)
    theirs = nemo.to_hf(dict(native), **KEYWORDS[layout])
    config = {"num_experts": E, "hidden_size": H, "moe_intermediate_size": I}
    assert_same(lazysd.convert(native, to=layout, config=config), theirs)
    back = nemo.from_hf(dict(theirs))
    assert_same(back, native)
    assert_same(lazysd.convert(theirs, to="nemo", source=layout, config=config), back)


@pytest.mark.parametrize("layout", KEYWORDS)
@pytest.mark.parametrize(("E", "H", "I", "r"), SHAPES)
def test_equals_nemo(E: int, H: int, I: int, r: int, layout: str) -> None:  # noqa: E741
    check(E, H, I, r, layout, others=True)


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.sampled_from(sorted(KEYWORDS)))
@settings(max_examples=40)
def test_equals_nemo_everywhere(E: int, H: int, I: int, r: int, layout: str) -> None:  # noqa: E741
    check(E, H, I, r, layout)


@pytest.mark.parametrize("layout", KEYWORDS)
def test_base_and_lora_together(layout: str) -> None:
    E, H, I = 3, 4, 5  # noqa: E741
    hf = random_hf(E, H, I, dtype=torch.float32, prefix="model.")
    nemo = nemo_adapter(E, H, I)
    native = nemo.from_hf(dict(hf)) | native_lora(E, H, I, 2, prefix="model.")
    theirs = nemo.to_hf(dict(native), **KEYWORDS[layout])
    made = lazysd.convert(native, to=layout, config={"num_experts": E})
    assert_same(made, theirs)
    assert_same(lazysd.convert(theirs, to="nemo", source=layout, config={"num_experts": E, "r": 2}), native)


@pytest.mark.parametrize("layout", ["peft-0.18", "peft-0.19"])
def test_the_generation_that_nemo_finds_is_ours(layout: str) -> None:
    """Both tell a file by its shapes, where they differ."""
    E, H, I, r = 6, 32, 24, 3  # noqa: E741
    nemo = nemo_adapter(E, H, I)
    theirs = nemo.to_hf(native_lora(E, H, I, r), **KEYWORDS[layout])
    assert lazysd.Checkpoint({key: lazysd.from_torch(t) for key, t in theirs.items()}).layout == layout


def test_a_difference_would_be_noticed() -> None:
    """One generation's tensors under the other's keys fail the comparison."""
    native = native_lora(4, 8, 8, 3, wrapped=("down",))
    wrong = lazysd.convert(native, to="peft-0.18")
    theirs = nemo_adapter(4, 8, 8).to_hf(dict(native))
    assert set(wrong) == set(theirs)
    with pytest.raises(AssertionError):
        assert_same(wrong, theirs)

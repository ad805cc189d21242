"""The published nemo-automodel adapter against our tables: the same tensors, both ways, on random checkpoints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import assert_same, bits, by_hand, random_hf
from hypothesis import given, settings
from hypothesis import strategies as st

import lazysd

adapter_module = pytest.importorskip("nemo_automodel.components.models.qwen3_moe.state_dict_adapter")

SHAPES = [(1, 1, 1), (2, 4, 4), (3, 4, 2), (3, 5, 7), (4, 8, 4), (5, 3, 1), (6, 32, 24), (8, 16, 8), (12, 1, 9)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def adapter(experts: int, hidden: int, inner: int, dtype: torch.dtype) -> object:
    """The adapter as NeMo builds it; it reads a few numbers of its configs and nothing else."""
    moe = SimpleNamespace(
        n_routed_experts=experts, dim=hidden, moe_inter_dim=inner, expert_activation="swiglu", expert_bias=False
    )
    backend = SimpleNamespace(dispatcher="torch", experts="torch")
    config = SimpleNamespace(num_experts=experts, hidden_size=hidden, moe_intermediate_size=inner)
    return adapter_module.Qwen3MoeStateDictAdapter(config, moe, backend, dtype=dtype)


def check(experts: int, hidden: int, inner: int, dtype: torch.dtype, prefix: str, layers: int = 1) -> None:
    hf = random_hf(experts, hidden, inner, layers, dtype, prefix)
    nemo: Any = adapter(experts, hidden, inner, dtype)  # one adapter both ways: it remembers whether it saw a prefix
    theirs = nemo.from_hf(dict(hf))
    ours = lazysd.convert(hf, to="nemo", source="hf", family="qwen3_moe")
    assert_same(ours, theirs)
    back = nemo.to_hf(dict(theirs))
    if prefix not in (
        "model.",
        "",
    ):  # NeMo writes experts under "model." whatever prefix it was given; values count here
        back = {
            key if ".mlp.experts." not in key else prefix + key.removeprefix("model."): t for key, t in back.items()
        }
    assert_same(back, hf)
    assert_same(lazysd.convert(theirs, to="hf", source="nemo", family="qwen3_moe"), back)


@pytest.mark.parametrize("prefix", ["model.", "", "model.language_model."])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("experts", "hidden", "inner"), SHAPES)
def test_equals_nemo(experts: int, hidden: int, inner: int, dtype: torch.dtype, prefix: str) -> None:
    check(experts, hidden, inner, dtype, prefix, layers=2)


@given(
    st.integers(1, 12), st.integers(1, 20), st.integers(1, 20), st.sampled_from(DTYPES),
    st.sampled_from(["model.", "", "model.language_model."]),
)  # fmt: skip
@settings(max_examples=40)
def test_equals_nemo_everywhere(experts: int, hidden: int, inner: int, dtype: torch.dtype, prefix: str) -> None:
    check(experts, hidden, inner, dtype, prefix)


@pytest.mark.parametrize("layout", ["nemo", "hf-fused"])
@pytest.mark.parametrize(("experts", "hidden", "inner"), SHAPES)
def test_equals_eager_torch(experts: int, hidden: int, inner: int, layout: str) -> None:
    """The same tables against five lines of plain torch: a bug shared with NeMo would show here."""
    hf = random_hf(experts, hidden, inner)
    found = lazysd.convert(hf, to=layout)
    for key, expected in by_hand(hf, experts)[layout].items():
        assert torch.equal(bits(found[key]), expected.contiguous())

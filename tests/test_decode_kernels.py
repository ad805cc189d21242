"""Kernels that decode, each through the suite that all of them pass; that a broken one fails it; that all agree."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lazysd.quant import decoding
from lazysd.quant.kernels import compiled, eager
from lazysd.quant.kernels.base import Request
from lazysd.testing.conformance.decoding import TARGETS, DecodeSuite, requests


class TestEager(DecodeSuite):
    kernel = eager.KERNEL


has_compiled = pytest.mark.skipif(
    not compiled.is_there(), reason="no compiled kernel: no compiler was there, or LAZYSD_KERNEL=off"
)


@has_compiled
class TestCompiled(DecodeSuite):
    kernel = compiled.KERNEL


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_in_small_parts(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHUNK", "NIBBLES"):
        monkeypatch.setattr(eager, name, 100)
    TestEager().test_any_stretch_of_any_weight(7, order)


@has_compiled
@pytest.mark.parametrize("code", TARGETS)
def test_kernels_agree_bit_by_bit(code: str) -> None:
    """NaNs included; what a NaN times a NaN is spelt like, too."""
    suites: list[Any] = [TestEager(), TestCompiled()]
    for wanted in requests(99, 80):
        one, other = (suite.decoded(wanted, code).view(torch.uint8) for suite in suites)
        assert torch.equal(one, other), wanted


def arguments(**changed: Any) -> list[Any]:
    """Those of the C code, for a matrix of 4 x 32 nibbles in groups of 16; some of them changed."""
    given: dict[str, Any] = {
        "kind": 0, "nans": (0x7FC0, 0xFFC0), "target": np.zeros(256, np.uint8), "offset": 0, "steps": (32, 1),
        "codes": np.ones(64, np.uint8), "per_word": 2, "rows": (0, 1, 4, 1), "columns": (0, 1, 32, 16),
        "values": np.ones(16, np.float32), "scale_kind": 2, "scales": np.ones(8, np.float32), "table": None,
        "by_total": 0, "total": 1.0, "zeros": None, "zero": 0.0,
    }  # fmt: skip
    return list((given | changed).values())


HUGE = 2**62


@has_compiled
@pytest.mark.parametrize(
    "changed",
    [
        {"kind": 3}, {"kind": -1}, {"per_word": 3}, {"per_word": 0}, {"nans": 1}, {"by_total": 3}, {"scale_kind": 4},
        {"offset": -1}, {"offset": 1}, {"offset": HUGE}, {"steps": (31, 1)}, {"steps": (33, 1)}, {"steps": (HUGE, 1)},
        {"steps": (-32, 1)}, {"steps": (1, 3)}, {"steps": (1, 5)}, {"steps": (32, 0)}, {"steps": (0, 1)}, {"steps": 1},
        {"steps": (1, HUGE)}, {"target": np.zeros(255, np.uint8)}, {"target": bytes(256)}, {"target": None},
        {"target": [1]}, {"codes": np.ones(63, np.uint8)}, {"codes": None}, {"per_word": 1},
        {"rows": (0, 1, 5, 1)}, {"rows": (0, 0, 4, 1)}, {"rows": (-1, 1, 4, 1)}, {"rows": (0, 1, 4, 0)},
        {"rows": (HUGE, HUGE, 4, 1)}, {"rows": (0, HUGE, 4, 1)}, {"rows": (0, 1, HUGE, 1)}, {"rows": (0, 1, -4, 1)},
        {"columns": (0, 1, 33, 16)}, {"columns": (0, 1, 32, 8)}, {"columns": (1, 1, 32, 16)},
        {"columns": (0, 1, HUGE, 16)}, {"columns": (0, 1, 32, -16)}, {"columns": (0, 1, -1, 16)},
        {"values": np.ones(15, np.float32)}, {"values": np.ones(68, np.uint8)[1:65]}, {"values": None},
        {"scales": np.ones(7, np.float32)}, {"scales": np.ones(7, np.uint8), "scale_kind": 3, "table": np.ones(256)},
        {"scale_kind": 3}, {"scales": np.ones(8, np.uint8), "scale_kind": 3, "table": np.ones(255)},
        {"scale_kind": 1, "scales": np.ones(7, np.float16)}, {"zeros": np.ones(7, np.float32)},
        {"scales": np.ones(36, np.uint8)[1:33]}, {"zero": "x"}, {"rows": (0, 1, 4)},
    ],
)  # fmt: skip
def test_the_compiled_kernel_takes_no_nonsense(changed: dict[str, Any]) -> None:
    given = arguments(**changed)
    with pytest.raises((ValueError, TypeError, OverflowError, BufferError, SystemError)):
        compiled.module().decode(*given)
    held = given[2]
    assert not isinstance(held, np.ndarray) or not held.any()


@has_compiled
def test_the_compiled_kernel_takes_what_is_right() -> None:
    given = arguments()
    compiled.module().decode(*given)
    assert (given[2].view(np.uint16) == 0x3F80).all()
    memory = np.zeros(320, np.uint8)
    with pytest.raises(ValueError, match="read meanwhile"):
        compiled.module().decode(*arguments(target=memory[:256], codes=memory[255:]))


@has_compiled
def test_many_threads_at_once() -> None:
    suite: Any = TestCompiled()
    wanted, wrong = list(requests(5, 20)), []
    right = [suite.decoded(one, "BF16", "columns").view(torch.uint8) for one in wanted]

    def work() -> None:
        for one, other in zip(wanted, right, strict=True):
            if not torch.equal(suite.decoded(one, "BF16", "columns").view(torch.uint8), other):
                wrong.append(one)

    crew = [threading.Thread(target=work) for _ in range(4)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert wrong == []


def broken(change: Callable[[torch.Tensor, Request], object]) -> type[DecodeSuite]:
    class Broken(eager.Eager):
        def decode(self, target: torch.Tensor, wanted: Request) -> None:
            change(target, wanted)

    return type("Broken", (DecodeSuite,), {"kernel": Broken()})


RIGHT = eager.KERNEL.decode


def beside(target: torch.Tensor, wanted: Request) -> None:
    RIGHT(target, wanted)
    target.as_strided((1,), (1,), int(target.storage_offset()) + 2 * target.numel()).fill_(1)


def truncated(target: torch.Tensor, wanted: Request) -> None:
    made = torch.empty(target.shape)
    RIGHT(made, wanted)
    target.copy_((made.view(torch.int32) & -0x10000).view(torch.float32))


def from_the_start(target: torch.Tensor, wanted: Request) -> None:
    axis = wanted.columns
    RIGHT(target, replace(wanted, columns=range(0, len(axis) * axis.step, axis.step)))


def unsigned(target: torch.Tensor, wanted: Request) -> None:
    RIGHT(target, wanted)
    target.masked_fill_(target == 0, 0.0)


def nowhere(target: torch.Tensor, wanted: Request) -> None:
    RIGHT(target if target.stride(-1) == 1 else target.contiguous(), wanted)


STRETCH: dict[str, Any] = {"seed": 0, "order": "columns"}
NIBBLES: dict[str, Any] = {"code": "BF16", "scale_code": "F8_E4M3", "total": 0.0173}


@pytest.mark.parametrize(
    ("test", "given", "change"),
    [
        ("any_stretch_of_any_weight", STRETCH, beside),
        ("any_stretch_of_any_weight", STRETCH, from_the_start),
        ("any_stretch_of_any_weight", STRETCH, nowhere),
        ("any_stretch_of_any_weight", STRETCH, lambda into, wanted: RIGHT(into, replace(wanted, zeros=None))),
        ("any_stretch_of_any_weight", STRETCH, lambda into, wanted: RIGHT(into, replace(wanted, zero=0.0))),
        ("every_nibble_under_every_byte", NIBBLES, lambda into, wanted: RIGHT(into, replace(wanted, divides=False))),
        ("every_nibble_under_every_byte", NIBBLES, unsigned),
        ("every_byte_under_many_scales", {"code": "F16", "values": "F8_E5M2"}, unsigned),
        ("rounds_half_to_even", {"code": "BF16"}, truncated),
    ],
)
def test_a_broken_one_fails_the_suite(test: str, given: dict[str, Any], change: Any) -> None:
    with pytest.raises(AssertionError):
        getattr(broken(change)(), f"test_{test}")(**given)


def test_members_are_found_by_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [member.name for member in decoding.members()] == ["compiled", "torch"]
    assert eager.KERNEL.takes(torch.empty(1, dtype=torch.float64))
    assert not compiled.KERNEL.takes(torch.empty(1, dtype=torch.float64))
    assert not compiled.KERNEL.takes(torch.empty(1, dtype=torch.bfloat16, device="meta"))
    monkeypatch.setattr(compiled, "VERSION", -1)
    compiled.built.cache_clear()
    try:
        assert not compiled.is_there()  # a file of another version
    finally:
        monkeypatch.undo()
        compiled.built.cache_clear()

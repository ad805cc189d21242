"""lazysd.testing: what it must catch is caught, what it draws is what it says, and its documents run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import noise
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import lazysd
from lazysd import layouts, testing
from lazysd.testing import assert_reads_only, assert_round_trip, assert_same_bytes, recorded_reads

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = sorted({layout.family for layout in layouts.all_layouts()})


def test_every_bit_counts() -> None:
    nan = torch.tensor([0x7FC0, 0x7FC1], dtype=torch.int16).view(torch.bfloat16)
    assert_same_bytes(nan, nan.clone())
    with pytest.raises(AssertionError, match=r"1 of 2 .* at \(1,\): found bits 0x7fc0, expected 0x7fc1"):
        assert_same_bytes(nan[:1].expand(2), nan)
    with pytest.raises(AssertionError, match="0x80000000"):
        assert_same_bytes(torch.tensor(0.0), torch.tensor(-0.0))
    with pytest.raises(AssertionError, match=r"found torch.float32 \[2\], expected torch.int32 \[2\]"):
        assert_same_bytes(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    with pytest.raises(AssertionError, match=r"\[2, 1\], expected torch.float32 \[2\]"):
        assert_same_bytes(torch.zeros(2, 1), torch.zeros(2))
    assert_same_bytes(torch.zeros(0, 3), torch.zeros(0, 3))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float8_e5m2, torch.float16, torch.float64])
def test_one_flipped_bit_is_found(dtype: torch.dtype) -> None:
    raw = torch.randint(0, 2, (24 * dtype.itemsize,), dtype=torch.uint8)
    tensor = raw.clone().view(dtype).view(2, 3, 4)
    raw[11 * dtype.itemsize] ^= 1
    with pytest.raises(AssertionError, match=r"1 of 24 .*\(0, 2, 3\)"):
        assert_same_bytes({"w": raw.view(dtype).view(2, 3, 4)}, {"w": tensor})


def test_keys_are_listed() -> None:
    tensors = {f"k{n}": torch.zeros(1) for n in range(9)}
    with pytest.raises(AssertionError, match="8 missing: k1, k2, k3, k4, k5, …\n1 unexpected: x"):
        assert_same_bytes({"k0": torch.zeros(1), "x": torch.zeros(1)}, tensors)
    with pytest.raises(AssertionError, match=r"k4: 1 of 1(.|\n)*and 4 more"):
        assert_same_bytes({key: tensor + 1 for key, tensor in tensors.items()}, tensors)


def test_lazy_tensors_on_either_side() -> None:
    tensor = noise((3, 4))
    lazy = lazysd.from_torch(tensor)
    assert_same_bytes({"w": lazy.T}, {"w": tensor.T})
    assert_same_bytes(tensor, lazy)
    with pytest.raises(AssertionError, match="differ"):
        assert_same_bytes(lazy.T.reshape(3, 4), tensor)


def identity(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors


def popping(tensors: dict[str, Any]) -> dict[str, Any]:
    return {key: tensors.pop(key) for key in list(tensors)}


BROKEN: dict[str, Any] = {
    "loses a key": (lambda tensors: dict(list(tensors.items())[1:]), "1 missing"),
    "adds a key": (lambda tensors: {**tensors, "more": torch.zeros(1)}, "1 unexpected: more"),
    "rounds": (lambda tensors: {k: t.to(torch.float8_e4m3fn).to(t.dtype) for k, t in tensors.items()}, "differ"),
    "swaps": (lambda tensors: dict(zip(tensors, reversed(tensors.values()), strict=True)), "there and back"),
    "edits": (lambda tensors: {k: t.view(torch.uint8).add_(1).view(t.dtype) for k, t in tensors.items()}, "edited its"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_converters_are_caught(name: str) -> None:
    broken, message = BROKEN[name]
    state_dict = find(testing.checkpoints(), lambda tensors: len(tensors) > 6)
    for forward, backward in ((broken, identity), (identity, broken)):
        with pytest.raises(AssertionError, match=message):
            assert_round_trip(forward, backward, {key: tensor.clone() for key, tensor in state_dict.items()})


@given(testing.checkpoints(), st.sampled_from(["nemo", "hf-fused"]))
def test_lazysd_itself_passes(state_dict: dict[str, torch.Tensor], layout: str) -> None:
    def forward(tensors: dict[str, Any]) -> Any:
        return lazysd.convert(popping(tensors), layout, family="qwen3_moe")

    def backward(tensors: dict[str, Any]) -> Any:
        return lazysd.convert(tensors, "hf", source=layout, family="qwen3_moe")

    assert_round_trip(forward, backward, state_dict)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_drawn(family: str) -> None:
    """And is recognised, and every rule of its layout `hf` has keys in it."""

    @given(testing.checkpoints(family))
    @settings(max_examples=10, suppress_health_check=[HealthCheck.differing_executors])
    def check(state_dict: dict[str, torch.Tensor]) -> None:
        ckpt = lazysd.convert({key: lazysd.from_torch(t) for key, t in state_dict.items()}, "hf", family=family)
        assert ckpt.layout == "hf"
        for template in layouts.get("hf", family).own_keys:
            assert any(template.match(key) for key in state_dict)
        assert_same_bytes(ckpt, state_dict)

    check()


def test_nan_payloads_are_drawn() -> None:
    def payloads(state_dict: dict[str, torch.Tensor]) -> bool:
        found = [t.view(torch.int16)[t.isnan()] for t in state_dict.values() if t.dtype == torch.bfloat16]
        return bool(found) and len(torch.cat(found).unique()) > 1

    assert find(testing.checkpoints(), payloads)


@given(st.lists(st.integers(0, 5), max_size=4), st.data())
def test_slices_fit_the_shape(shape: list[int], data: st.DataObject) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    key = data.draw(testing.slices(shape))
    assert torch.equal(lazysd.from_torch(tensor)[key].materialize(), tensor[key])


@pytest.mark.parametrize("kind", [int, slice, list, torch.Tensor, type(None), type(...)])
def test_slices_of_every_kind_are_drawn(kind: type) -> None:
    assert find(testing.slices((3, 4)), lambda key: any(isinstance(item, kind) for item in key)) is not None


@given(testing.lazy_tensors(codes=("BF16", "F8_E4M3"), max_ops=3))
def test_expected_is_what_torch_has(drawn: Any) -> None:
    assert drawn.expected.dtype in (torch.bfloat16, torch.float8_e4m3fn)
    assert_same_bytes(drawn.node, drawn.expected)


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_reads_beyond_what_is_allowed_are_caught(tmp_path: Path, io: str) -> None:
    save_file({"a": torch.zeros(4, 100), "b": torch.ones(4, 100)}, tmp_path / "m.safetensors")
    ckpt = lazysd.open(tmp_path / "m.safetensors", io=io)
    a, b = ckpt["a"], ckpt["b"]
    assert_reads_only(lambda: (repr(a), a[1:], a.reads()))
    assert torch.equal(assert_reads_only(a.materialize, [a], exactly=True), torch.zeros(4, 100))
    assert_reads_only(a[1].materialize, [b, a])
    with pytest.raises(
        AssertionError, match=r"1 ranges were read, but not part of what is allowed:\n  .*m.safetensors"
    ):
        assert_reads_only(a.materialize)
    with pytest.raises(AssertionError, match="400 bytes"):
        assert_reads_only(b[2].materialize, [a])
    with pytest.raises(AssertionError, match="not part of what is allowed"):
        assert_reads_only(a[0:2].materialize, [a[0:1]])
    with pytest.raises(AssertionError, match=r"allowed, but not read:(.|\n)*400 bytes"):
        assert_reads_only(a[1].materialize, [a[1], b[3]], exactly=True)
    with recorded_reads() as noted:
        a[3].materialize()
    assert sum(nbytes for _, _, nbytes in noted) == 400
    a.materialize()
    assert len(noted) == 1  # what happens afterwards is not noted


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::DeprecationWarning:lazysd", "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_without_hypothesis() -> None:
    code = """
import sys
sys.modules["hypothesis"] = None  # as if it were not installed
import torch, lazysd
lazysd.testing.assert_same_bytes(torch.zeros(2), torch.zeros(2))
for name in ("checkpoints", "lazy_tensors", "slices"):
    try:
        getattr(lazysd.testing, name)
    except ImportError as error:
        assert "pip install hypothesis" in str(error), error
    else:
        raise SystemExit(f"{name} came without hypothesis")
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_hypothesis_is_imported_by_the_strategies_only() -> None:
    code = "import sys, lazysd; lazysd.testing.assert_round_trip; print('hypothesis' in sys.modules)"
    assert run(code).stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        testing.nothing  # noqa: B018


@pytest.mark.slow
def test_the_documented_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for number, block in enumerate(blocks):
        (tmp_path / f"test_block{number}.py").write_text(block)
    broken = blocks[0].replace("for expert in sorted(experts)", "for expert in sorted(experts, key=str, reverse=True)")
    assert broken != blocks[0]
    (tmp_path / "test_broken.py").write_text(broken)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "1 failed, 3 passed" in done.stdout, done.stdout
    assert "there and back is not the same" in done.stdout

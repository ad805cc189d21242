"""Values as text: corners of large tensors, and nothing else is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lazysd.cli.main import main
from lazysd.display.values import EDGE, MAX_AXES, MAX_WHOLE, corners_text, picks
from lazysd.testing import recorded_reads


@given(st.lists(st.integers(0, 40), max_size=7))
def test_what_is_shown_is_bounded_and_in_place(dims: list[int]) -> None:
    shown = picks(tuple(dims))
    if shown is None:
        assert torch.Size(dims).numel() <= MAX_WHOLE
        return
    assert all(len(axis) <= 2 * EDGE for axis in shown)
    assert all(set(axis) <= set(range(size)) for axis, size in zip(shown, dims, strict=True))
    assert sum(len(axis) > 1 for axis in shown) <= MAX_AXES


def test_corners_are_laid_out_with_gaps() -> None:
    whole = torch.arange(2 * 1000).view(2, 1000)
    shown = picks((2, 1000))
    assert shown == ((0, 1), (0, 1, 2, 997, 998, 999))
    text = corners_text(whole[:, list(shown[1])], (2, 1000), shown)
    assert text == "[[   0,    1,    2, …,  997,  998,  999],\n [1000, 1001, 1002, …, 1997, 1998, 1999]]"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    save_file({"w": torch.arange(3_000_000.0).view(1000, 3000)}, tmp_path / "model.safetensors")
    return tmp_path


def test_only_the_corners_are_read(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with recorded_reads() as noted:
        assert main(["show", str(large), "w"]) == 0
    assert sum(nbytes for _, _, nbytes in noted) < 200_000
    out = capsys.readouterr().out
    assert "2.997e+03, 2.998e+03, 2.999e+03]" in out or "2997" in out
    assert "--slice shows more" in out


def test_json_is_capped_unless_a_slice_is_asked_for(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with recorded_reads() as noted:
        assert main(["show", str(large), "w", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["values"], data["values_left_out"]) == (None, "3000000 values; ask for some with --slice")
    assert noted == []
    assert main(["show", str(large), "w", "--json", "--slice", "7, ::1000"]) == 0
    assert json.loads(capsys.readouterr().out)["values"] == [21000.0, 22000.0, 23000.0]


def test_a_key_of_another_layout_says_which(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "model.layers.0.mlp.experts.down_projs"
    assert main(["show", str(golden / "qwen3_moe_tiny"), key]) == 3
    assert capsys.readouterr().err == f"lazysd: {key!r} is not in this layout; it exists in nemo: add --to nemo\n"
    assert main(["show", str(golden / "qwen3_moe_tiny"), key, "--to", "nemo", "--no-values"]) == 0


def test_thousands_of_axes(capsys: pytest.CaptureFixture[str]) -> None:
    dims = (1,) * 60 + (2000,)
    shown = picks(dims)
    assert shown is not None
    text = corners_text(torch.zeros(*map(len, shown)), dims, shown)
    assert text.count("[") == 61

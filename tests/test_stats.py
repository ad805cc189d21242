"""stats(): against plain torch and numpy, whatever the dtype, the tiles and the workers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import noise, write
from safetensors.torch import save_file

import lazysd
from lazysd import reduction
from lazysd.cli.main import main
from lazysd.counting.kernels import compiled, plain
from lazysd.display.stats import text_of_all

NARROW = [
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint8,
    torch.int8,
    torch.bool,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.int16,
    torch.uint16,
]
WIDE = [torch.float32, torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64]


def values(dtype: torch.dtype, dims: tuple[int, ...] = (41, 67)) -> torch.Tensor:
    torch.manual_seed(0)
    made = torch.randn(dims) * 30
    made[2:4] = 0
    return made.abs().to(dtype) if str(dtype).startswith("torch.uint") else made.to(dtype)


def assert_right(found: Any, tensor: torch.Tensor) -> None:
    plain = tensor.double().flatten().numpy()
    good = np.sort(plain[np.isfinite(plain)])
    assert (found.num_elements, found.shape) == (tensor.numel(), tuple(tensor.shape))
    assert found.num_zeros == int((plain == 0).sum())
    assert found.num_nan == int(np.isnan(plain).sum())
    assert found.num_inf == int(np.isinf(plain).sum())
    assert (found.min, found.max) == (good[0], good[-1])
    assert found.absmax == np.abs(good).max()
    assert found.mean == pytest.approx(good.mean(), rel=1e-10, abs=1e-12)
    assert found.std == pytest.approx(good.std(ddof=1), rel=1e-10)
    for at, value in found.quantiles.items():
        wanted = good[int(at * (len(good) - 1))]
        assert value == (wanted if found.exact else pytest.approx(wanted, rel=1 / 128, abs=1e-30))
    assert sum(found.bin_counts) == len(good)
    assert (found.bin_edges[0], found.bin_edges[-1]) == (found.min, found.max)
    if found.exact:
        counts, _ = np.histogram(good, bins=len(found.bin_counts), range=(good[0], good[-1]))
        assert list(found.bin_counts) == list(counts)


@pytest.mark.parametrize("dtype", NARROW + WIDE, ids=str)
@pytest.mark.parametrize(("tile", "chunk", "workers"), [(8 << 20, 0, 1), (256, 7, 3), (4096, 64, 2), (4096, 0, 2)])
def test_against_numpy(dtype: torch.dtype, tile: int, chunk: int, workers: int, monkeypatch: Any) -> None:
    """With the compiled kernel, if there is one, and with numpy's."""
    monkeypatch.setattr(reduction, "PREFERRED_TILE_NBYTES", tile)
    monkeypatch.setattr(reduction, "MOST_NBYTES", tile)
    if chunk:
        monkeypatch.setattr(compiled.Compiled, "is_available", lambda self: False)
        monkeypatch.setattr(plain, "CHUNK", chunk)
    tensor = values(dtype)
    found = lazysd.from_torch(tensor).stats(workers=workers)
    assert found.exact is (dtype in NARROW)
    assert_right(found, tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_every_bit_random(dtype: torch.dtype) -> None:
    tensor = noise((64, 64), dtype)
    if dtype in (torch.float32, torch.float64):  # sums of what float64 cannot hold mean nothing
        tensor = torch.where(tensor.abs() < 1e30, tensor, torch.where(tensor.isfinite(), 1.0, tensor))
        tensor[tensor.abs() < 1e-30] = 0
    assert_right(lazysd.from_torch(tensor).stats(), tensor)


def test_a_mean_far_from_zero_keeps_its_spread() -> None:
    tensor = 1e8 + torch.randn(100_000, dtype=torch.float64)
    assert lazysd.from_torch(tensor).stats().std == pytest.approx(float(tensor.std()), rel=1e-9)


@pytest.mark.parametrize("dims", [(0, 3), (1,), ()])
def test_few_elements(dims: tuple[int, ...]) -> None:
    found = lazysd.from_torch(torch.ones(dims)).stats()
    assert found.num_elements == math.prod(dims)
    assert math.isnan(found.std)
    assert found.max == 1 or not found.num_elements
    assert str(found)
    json.dumps(found.as_dict(), allow_nan=False)


def test_nothing_finite() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        found = lazysd.from_torch(torch.full((3,), math.nan, dtype=dtype)).stats()
        assert (found.num_nan, found.quantiles, found.bin_counts) == (3, {}, ())
        assert math.isnan(found.max)


def test_what_is_no_number() -> None:
    with pytest.raises(TypeError, match="real numbers"):
        lazysd.from_torch(torch.zeros(2, dtype=torch.complex64)).stats()
    both = lazysd.Checkpoint({"c": lazysd.from_torch(torch.zeros(2, dtype=torch.complex64))})
    assert both.stats().skipped == ("c",)


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    tensors = {"a.0": torch.randn(8, 8), "a.1": torch.randn(8, 8), "b\n": torch.tensor([1.0, math.inf, math.nan])}
    src = str(write(tmp_path / "src", tensors))
    assert main(["stats", src]) == 0
    out = capsys.readouterr().out
    assert "b\\n" in out
    assert len(out.splitlines()) == 4
    assert main(["stats", src, "a.0"]) == 0
    out = capsys.readouterr().out
    assert "█" in out
    assert "50%" in out
    assert main(["stats", src, "a.*", "--check"]) == 0
    assert "0 of 2 tensors hold NaN or infinity" in capsys.readouterr().out
    assert main(["stats", src, "--check", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["not_finite"] == ["b\n"]
    assert data["tensors"]["a.0"]["max"] == float(tensors["a.0"].max())
    assert main(["stats", src, "a.2"]) == 3
    assert "no key is or matches 'a.2'" in capsys.readouterr().err
    html = lazysd.open(src).stats()._repr_html_()
    assert html.count("<tr>") == 4
    one = lazysd.open(src)["b\n"].stats()
    assert repr(one) == "Stats(F32[3], min 1, max 1, mean 1, 1 NaN, 1 inf)"
    assert "histogram" in lazysd.open(src)["a.0"].stats()._repr_html_()


def test_a_table_gives_up_what_says_least() -> None:
    """Names keep their room; columns with NaN or infinities in them never go."""
    tensors = {f"model.layers.{n}.mlp.experts.{n}.down_proj.weight": torch.arange(-50.0, 51.0) for n in range(2)}
    calm = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}).stats()
    wide = text_of_all(calm).splitlines()
    assert wide[0].split() == ["tensor", "min", "1%", "50%", "99%", "max", "mean", "std", "zeros", "NaN", "inf"]
    assert wide[1].split()[1:6] == ["-50", "-49", "0", "49", "50"]
    for width in (50, 60, 80, 100, 200):
        lines = text_of_all(calm, width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) == 3
    assert "layers.1." in text_of_all(calm, width=80)
    next(iter(tensors.values()))[3] = torch.nan
    odd = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}).stats()
    assert "NaN" in text_of_all(odd, width=40)


def test_lines_are_sorted_and_capped(tmp_path: Path, capsys: Any) -> None:
    """What is no number stands last."""
    tensors = {f"t.{n}": torch.tensor([0.0, n]) for n in range(12)} | {"nothing": torch.full((2,), torch.nan)}
    save_file(tensors, tmp_path / "m.safetensors")
    for sort, first, count in (
        ("absmax", "t.11", 3),
        ("zeros", "t.0", 1),
        ("nan", "nothing", 2),
        ("absmax", "t.11", 13),
    ):
        assert main(["stats", str(tmp_path / "m.safetensors"), "--sort", sort, "--top", str(count), "-q"]) == 0
        _, *lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[0] == first
        assert (lines[-1] == f"… and {13 - count} more tensors") == (count < 13)
        assert count < 13 or lines[-1].split()[0] == "nothing"

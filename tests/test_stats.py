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
from lazysd.display.stats import MAX_ROWS, text_of_all

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


def many(num_layers: int = 31) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    made = {f"layers.{n}.{name}.weight": torch.randn(5, 7) + n for n in range(num_layers) for name in ("up", "down")}
    return made | {"norm": torch.ones(3)}


def test_of_many_tensors_those_alike_are_one_line(tmp_path: Path, capsys: Any) -> None:
    tensors = many()
    save_file(tensors, tmp_path / "m.safetensors")
    path = str(tmp_path / "m.safetensors")
    assert main(["stats", path]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "layers.{0-30}.down.weight x 31",
        "layers.{0-30}.up.weight x 31",
        "norm",
    ]
    assert "50%" not in head  # of a row nobody knows it
    for words, count in ((["--keys"], 64), (["--top", "9"], 11), (["--sort", "std"], 4), (["layers.1*.up*"], 12)):
        assert main(["stats", path, *words]) == 0
        assert len(capsys.readouterr().out.splitlines()) == count, words
    assert main(["stats", path, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tensors"]) == 63
    assert len(str(lazysd.open(path).stats()).splitlines()) == 4


def test_a_row_is_its_tensors_taken_as_one() -> None:
    tensors = many()
    tensors["layers.3.up.weight"][0, 0] = torch.nan
    tensors["layers.4.up.weight"][:] = torch.inf
    tensors["layers.5.up.weight"][:] = 0
    found = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}).stats()
    for row in found.rows():
        whole = torch.cat([tensors[key].flatten() for key in row.keys])
        plain = whole.double()[whole.isfinite()]
        assert (row.stats.num_elements, row.stats.num_zeros) == (whole.numel(), int((whole == 0).sum()))
        assert (row.stats.num_nan, row.stats.num_inf) == (int(whole.isnan().sum()), int(whole.isinf().sum()))
        assert (row.stats.min, row.stats.max) == (plain.min(), plain.max())
        assert row.stats.mean == pytest.approx(float(plain.mean()), rel=1e-12)
        assert row.stats.std == pytest.approx(float(plain.std()), rel=1e-12)
    (odd,) = (row for row in found.rows() if row.odd)
    assert odd.odd == ("layers.3.up.weight", "layers.4.up.weight")
    assert str(found).splitlines()[-1] == "NaN or inf in 2 tensors: 'layers.3.up.weight', 'layers.4.up.weight'"


def test_a_row_of_nothing_finite() -> None:
    found = lazysd.Checkpoint({f"a.{n}": lazysd.from_torch(torch.full((2,), torch.nan)) for n in range(99)}).stats()
    (row,) = found.rows()
    assert (row.stats.num_nan, row.stats.num_zeros) == (198, 0)
    assert all(map(math.isnan, (row.stats.min, row.stats.max, row.stats.mean, row.stats.std, row.stats.absmax)))


def test_no_table_is_longer_than_a_screen_or_three(tmp_path: Path, capsys: Any) -> None:
    """Names that do not fold, and all of them with NaN."""
    tensors = {f"w{n}": torch.tensor([float("nan")]) for n in range(MAX_ROWS + 50)}
    save_file(tensors, tmp_path / "m.safetensors")
    for words, last in (([], "NaN or inf in 250 tensors"), (["--check"], "250 of 250 tensors hold NaN")):
        main(["stats", str(tmp_path / "m.safetensors"), *words])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == MAX_ROWS + 3
        assert lines[-2].startswith("… and 50 more tensors")
        assert lines[-1].startswith(last)


def test_quantiles_stand_in_the_table_of_a_notebook() -> None:
    page = lazysd.Checkpoint({"a": lazysd.from_torch(torch.arange(-50.0, 51.0))}).stats()._repr_html_()
    assert all(f">{text}<" in page for text in ("1%", "50%", "99%", "-49", "49"))

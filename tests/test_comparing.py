"""compare(): distances against plain torch in float64, whatever the tiles, workers, layouts and dtypes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import expert_key, write

import lazysd
from lazysd import reduction
from lazysd.cli.main import main
from lazysd.counting.kernels import compiled, plain
from lazysd.errors import MemoryBudgetError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.int8, torch.int64]


def two(dtype: torch.dtype, dims: tuple[int, ...] = (37, 53)) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    a = torch.randn(dims) * 20
    b = a.clone()
    b[3:9] += torch.randn(b[3:9].shape)
    return a.to(dtype), b.to(dtype)


def assert_measured(found: Any, a: torch.Tensor, b: torch.Tensor, changed: int) -> None:
    x, y = a.double(), b.double()
    good = x.isfinite() & y.isfinite()
    x, y = x.where(good, 0.0), y.where(good, 0.0)
    assert found.num_elements == a.numel()
    assert found.num_changed == changed
    assert found.norm == pytest.approx(float(x.norm()), rel=1e-12)
    assert found.other_norm == pytest.approx(float(y.norm()), rel=1e-12)
    assert found.delta_norm == pytest.approx(float((y - x).norm()), rel=1e-12)
    assert found.max_delta == float((y - x).abs().max())
    cosine = float((x * y).sum() / x.norm() / y.norm())
    assert found.cosine == pytest.approx(cosine, rel=1e-12)
    assert found.relative == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tile", "chunk", "workers"), [(8 << 20, 0, 1), (256, 7, 3), (4096, 64, 2)])
def test_against_torch(dtype: torch.dtype, tile: int, chunk: int, workers: int, monkeypatch: Any) -> None:
    """With the compiled kernel, if there is one, and with numpy's."""
    monkeypatch.setattr(reduction, "PREFERRED_TILE_NBYTES", tile)
    monkeypatch.setattr(reduction, "MOST_NBYTES", tile)
    if chunk:
        monkeypatch.setattr(compiled.Compiled, "is_available", lambda self: False)
        monkeypatch.setattr(plain, "CHUNK", chunk)
    a, b = two(dtype)
    found = lazysd.compare({"t": a}, {"t": b}, workers=workers)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    changed = int((a.view(bits) != b.view(bits)).sum())
    assert not found.equal
    assert found.differences[0].num_different == changed
    assert_measured(found.magnitudes["t"], a, b, changed)


def test_nan_and_infinity_are_counted_and_left_out() -> None:
    a, b = two(torch.float32)
    a[0, 0], a[4, 1], b[5, 5], b[6, 6], b[0, 0] = math.nan, math.inf, -math.inf, math.nan, math.nan
    found = lazysd.compare({"t": a}, {"t": b}).magnitudes["t"]
    assert (found.num_nan, found.num_inf) == ((1, 2), (1, 1))
    assert_measured(found, a, b, int((a.view(torch.int32) != b.view(torch.int32)).sum()))
    assert "1 and 2 NaN, 1 and 1 inf" in str(lazysd.compare({"t": a}, {"t": b}))


def test_huge_values_do_not_overflow() -> None:
    a = torch.tensor([3e38, 1.0])
    found = lazysd.compare({"t": a}, {"t": -a}).magnitudes["t"]
    assert found.relative == pytest.approx(2)
    assert found.cosine == pytest.approx(-1)


def test_across_dtypes_and_with_tolerance() -> None:
    a, _ = two(torch.float32)
    half = a.to(torch.bfloat16)
    found = lazysd.compare({"t": a}, {"t": half})
    assert [difference.kind for difference in found.differences] == ["dtype"]
    assert_measured(found.magnitudes["t"], a, half, int((a.double() != half.double()).sum()))
    most = found.magnitudes["t"].max_delta
    assert lazysd.compare({"t": a}, {"t": half}, tolerance=most).equal
    assert not lazysd.compare({"t": a}, {"t": half}, tolerance=most * 0.999).equal
    assert lazysd.compare({"t": a}, {"t": a + 1e-6}, tolerance=1e-3).equal
    nan = a.clone()
    nan[0, 0] = math.nan
    assert not lazysd.compare({"t": a}, {"t": nan}, tolerance=1e3).equal


def test_tolerance_covers_nothing_that_is_not_finite_or_too_wide() -> None:
    a = torch.tensor([math.nan, 1.0, 2.0, math.inf])
    for b in ([1.0, math.nan, 2.0, math.inf], [math.nan, 1.0, 2.0, -math.inf], [math.nan, 1.0, math.inf, 2.0]):
        for dtype in (torch.float32, torch.bfloat16):
            assert not lazysd.compare({"t": a}, {"t": torch.tensor(b).to(dtype)}, tolerance=1e6).equal
    assert lazysd.compare({"t": a}, {"t": torch.tensor([math.nan, 1.5, 2.0, math.inf])}, tolerance=0.5).equal
    big = torch.tensor([2**60], dtype=torch.int64)
    assert not lazysd.compare({"t": big}, {"t": big + 1}, tolerance=0.5).equal


def finetunes(tmp_path: Path) -> tuple[str, str]:
    torch.manual_seed(1)
    made = {
        expert_key(e, w, layer): torch.randn(6, 6)
        for layer in range(12)
        for e in range(11)
        for w in ("gate", "up", "down")
    }
    moved = {key: value + (0.2 if ".layers.2." in key else 0.01) * torch.randn(6, 6) for key, value in made.items()}
    config = {"model_type": "qwen3_moe", "num_experts": 11, "hidden_size": 6, "moe_intermediate_size": 6}
    write(tmp_path / "a", made, config=config)
    write(tmp_path / "b", moved, config=config)
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_what_moved_most_is_read_off_the_first_screen(tmp_path: Path, capsys: Any) -> None:
    a, b = finetunes(tmp_path)
    assert main(["diff", a, b, "--stat"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "0 tensors equal, 396 differ in values"
    assert all("model.layers.2.mlp.experts.{0-10}." in line for line in out[1:4])
    assert len(out) == 1 + 20 + 1
    assert "█" * 20 in out[1]
    assert "16 rows that moved less" in out[-1]
    relative = [float(line.split("|")[1].split()[0]) for line in out[1:5]]
    assert 15 < relative[2] / relative[3] < 25
    assert main(["diff", a, b, "--sort", "name", "--top", "2"]) == 1
    out = capsys.readouterr().out
    assert "model.layers.0.mlp.experts.{0-10}.down_proj.weight" in out
    assert main(["diff", a, b, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["magnitudes"]) == 396
    assert main(["diff", a, b, "--tolerance", "5"]) == 0


def test_across_layouts(tmp_path: Path) -> None:
    a, b = finetunes(tmp_path)
    lazysd.open(b).convert("nemo").save(tmp_path / "n")
    plain, across = lazysd.compare(a, b), lazysd.compare(a, tmp_path / "n")
    assert plain.magnitudes == across.magnitudes
    assert [row.name for row in plain.rows()] == [row.name for row in across.rows()]


def test_only_in_one(tmp_path: Path) -> None:
    found = lazysd.compare({"a": torch.ones(1), "b": torch.ones(1)}, {"b": torch.ones(1), "c": torch.ones(1)})
    assert [(d.key, d.kind, d.detail) for d in found.differences] == [
        ("c", "missing", "only in B"),
        ("a", "extra", "only in A"),
    ]
    assert found.num_equal == 1


def test_keys_of_one_side_are_not_looked_for_among_near_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("lazysd.checkpoint.did_you_mean", lambda key, _: asked.append(key) or "")
    a, b = (lazysd.Checkpoint({f"{side}.{n}": lazysd.from_torch(torch.ones(1)) for n in range(9)}) for side in "ab")
    assert len(lazysd.compare(a, b).differences) == 18
    assert not asked


def test_a_word_of_a_key_may_be_the_zero_character() -> None:
    found = lazysd.compare({"a.0.\0.1": torch.ones(2)}, {"a.0.\0.1": torch.zeros(2)})
    assert [row.name for row in found.rows()] == ["a.0.\\x00.1"]
    assert "a.0.\\x00.1" in str(found)


def test_a_cast_that_lost_nothing_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    a = {f"layers.{n}.w": torch.tensor([1.0, n]) for n in range(11)}
    b = {key: tensor.bfloat16() for key, tensor in a.items()} | {"layers.3.w": torch.tensor([1.01, 3]).half()}
    found = lazysd.compare(a, b)
    assert "10 differ in dtype alone, their values are the same, 1 differs in dtype" in found.headline()
    shown = "  layers.{0-2,4-10}.w: dtype: F32 in A, BF16 in B, the same values"
    assert found.details() == [shown, "  layers.3.w: dtype: F32 in A, F16 in B"]
    assert lazysd.compare(a, b, tolerance=0.1).equal


def test_rows_left_out_are_said_as_they_are_sorted() -> None:
    found = lazysd.compare(
        {f"l.{n}.w": torch.ones(2) for n in range(3)}, {f"l.{n}.w": torch.zeros(2) for n in range(3)}
    )
    assert found.table("relative", 1).endswith("… and 2 rows that moved less")
    assert found.table("name", 1).endswith("… and 2 rows that moved")


def test_narrow_tables_say_shares() -> None:
    key = "model.layers.2.some.blocks.11.of_a_long_name.weight"
    found = lazysd.compare({key: torch.ones(20_000)}, {key: torch.zeros(20_000)})
    assert "20,000 of 20,000" in found.table()
    assert "100%" in (narrow := found.table(width=80))
    assert "20,000" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80


def test_details_fold_and_leave_values_to_the_table() -> None:
    a = {f"layers.{n}.w": torch.zeros(2) for n in range(12)}
    many = lazysd.compare(
        a, {key: tensor + 1 for key, tensor in a.items()} | {f"x.{n}": torch.zeros(1) for n in range(3)}
    )
    assert many.details() == ["  x.{0-2}: missing: only in B"]
    few = lazysd.compare(a, a | {f"layers.{n}.w": torch.tensor([0.0, n]) for n in (3, 11)})
    assert [line.split(";")[0] for line in few.details()] == [
        f"  layers.{n}.w: values: 1 of 2 elements differ" for n in (3, 11)
    ]


def test_html_escapes_names() -> None:
    html = lazysd.compare({"<b>0": torch.ones(3)}, {"<b>0": torch.zeros(3)})._repr_html_()
    assert "<b>0" not in html
    assert "&lt;b&gt;0" in html


def test_a_plot_has_a_bar_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    found = lazysd.compare(
        {"l.0.w": torch.ones(3), "l.1.w": torch.ones(3)}, {"l.0.w": torch.zeros(3), "l.1.w": torch.ones(3)}
    )
    axes = found.plot()
    assert [bar.get_width() for bar in axes.patches] == [1.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["l.0.w"]


def test_few_bit_types_are_compared_as_bits(tmp_path: Path) -> None:
    a = torch.arange(8, dtype=torch.uint8).reshape(2, 4)
    for number, data in enumerate((a, a + (a == 5).to(torch.uint8))):
        write(tmp_path / str(number), {"w": data.view(torch.float4_e2m1fn_x2)})
    assert lazysd.compare(tmp_path / "0", tmp_path / "0").equal
    found = lazysd.compare(tmp_path / "0", tmp_path / "1")
    assert [(d.kind, d.num_different > 0) for d in found.differences] == [("values", True)]
    assert found.magnitudes == {}


def test_a_budget_is_kept(tmp_path: Path) -> None:
    a, b = finetunes(tmp_path)
    with pytest.raises(MemoryBudgetError, match="the smallest that would do is"):
        lazysd.compare(a, b, max_memory="1MB")
    assert main(["diff", a, b, "--max-memory", "1MB"]) == 2
    assert main(["verify", a, "--against", b, "--max-memory", "1MB"]) == 2
    assert main(["diff", a, a, "--max-memory", "16MB"]) == 0


def test_misuse() -> None:
    with pytest.raises(TypeError, match="checkpoints, paths or mappings"):
        lazysd.compare(3, {})
    with pytest.raises(ValueError, match="sort is one of"):
        lazysd.compare({}, {}).rows("size")
    assert main(["diff", "x", "y", "--no-values", "--stat"]) == 3


CHILD = """
import sys, torch, lazysd.comparing, lazysd.stats
from lazysd.cli.main import main
def anonymous(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
a, b, n = sys.argv[1:]
torch.ones(3).sum()
for words in (["diff", a, b, "--stat"], ["verify", n, "--against", a], ["stats", b]):
    open("/proc/self/clear_refs", "w").write("5")
    before = anonymous("VmRSS")
    code = main([*words, "--max-memory", "48MB", "--workers", "2"])
    print(code, anonymous("VmHWM") - before, file=sys.stderr)
"""


def test_memory_stays_within_the_budget(tmp_path: Path) -> None:
    """100 MB of experts compared, verified across layouts and measured in 48 MB, in a child process."""
    torch.manual_seed(0)
    made = {expert_key(e, w): torch.randn(1024, 1024).bfloat16() for e in range(16) for w in ("gate", "up", "down")}
    config = {"model_type": "qwen3_moe", "num_experts": 16, "hidden_size": 1024, "moe_intermediate_size": 1024}
    write(tmp_path / "a", made, config=config)
    write(tmp_path / "b", {key: value * 1.01 for key, value in made.items()}, config=config)
    lazysd.open(tmp_path / "a").convert("nemo").save(tmp_path / "n")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in "abn")], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    results = [tuple(map(int, line.split())) for line in done.stderr.splitlines()]
    assert [code for code, _ in results] == [1, 0, 0]
    assert max(grown for _, grown in results) < 48_000_000, results

"""Plans: the proof of coverage, bytes, shards and memory, all before any data is read."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import lazysd
from lazysd.graph.boxes import covers_once, full_box
from lazysd.graph.leaves import FileRange
from lazysd.move.tiling import dense_pieces, glue
from lazysd.save import plan
from lazysd.save.plan import make_plan
from lazysd.sizes import parse_size
from lazysd.stores.base import File
from lazysd.stores.local import COST
from lazysd.tensor.lazy import LazyTensor


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("tensor data was read")

    monkeypatch.setattr(File, "read", refuse)
    monkeypatch.setattr(File, "view", refuse)


@pytest.mark.usefixtures("unreadable")
def test_planning_reads_nothing_and_counts_everything(golden: Path) -> None:
    source = lazysd.open(golden / "qwen3_moe_tiny")
    for to in ("hf", "hf-fused", "nemo"):
        plan = source.convert(to).plan()
        assert (plan.read_nbytes, plan.tensor_nbytes, plan.num_sources) == (source.nbytes, source.nbytes, len(source))
        assert (plan.lossy, plan.notes) == ((), ())
        assert plan.peak_nbytes <= plan.max_memory


def test_a_source_used_twice_or_in_part_is_noted(golden: Path) -> None:
    source = lazysd.open(golden / "qwen3_moe_tiny")
    key = "model.norm.weight"
    assert source.plan().notes == ()
    twice = (source | {"again": source[key]}).plan()
    assert twice.notes == ("1 source tensors are used in part, or more than once",)
    assert (source | {key: source[key][:3]}).plan().notes == twice.notes


def test_lossy_steps_are_listed(golden: Path) -> None:
    source = lazysd.open(golden / "qwen3_moe_tiny")
    wide = source.map(lambda t: t.to(torch.float32))
    assert wide.plan().lossy == ()
    assert wide.map(lambda t: t.to(torch.float16)).plan().lossy == ("cast f32 -> f16 (57 tensors)",)
    assert "cast f32 -> f16" in str(wide.map(lambda t: t.to(torch.float16)).plan())


def test_gate_and_up_stay_in_one_job_and_one_read(golden: Path) -> None:
    converted = lazysd.open(golden / "qwen3_moe_tiny_native.safetensors").convert("hf")
    plan = converted.plan()
    jobs = [job for number in range(len(plan.shards)) for job in plan.jobs_of(number)]
    for job in jobs:
        names = [part.target.key for part in job.parts]
        for key in names:
            assert key.replace("gate_proj", "up_proj") in names
    assert all(len(unit) in (1, 2) for shard in plan.shards for unit in shard.units)
    assert sum(len(unit) == 2 for shard in plan.shards for unit in shard.units) == 12


def test_small_shards_cut_units_rather_than_overflow(golden: Path) -> None:
    converted = lazysd.open(golden / "qwen3_moe_tiny_native.safetensors").convert("hf")
    plan = converted.plan(max_shard_size=2000)
    for shard in plan.shards:
        sizes = [target.node.nbytes for target in shard.targets]
        assert sum(sizes) <= 2000 or len(sizes) == 1
    assert sum(shard.num_targets for shard in plan.shards) == len(converted)


def test_shards_are_aligned(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(3, dtype=torch.uint8),
        "b": torch.zeros(5, dtype=torch.float64),
        "c": torch.zeros(7).half(),
        "d": torch.zeros(1, dtype=torch.bool),
        "e": torch.zeros(2, dtype=torch.int32),
    }
    composed = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()})
    plan = composed.save(tmp_path / "out")
    for target in plan.shards[0].targets:
        assert target.offset % target.node.itemsize == 0
    saved = lazysd.open(tmp_path / "out")
    assert all(torch.equal(saved[key].materialize(), tensor) for key, tensor in tensors.items())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_coverage_proof_is_exact(dims: list[int], data: st.DataObject) -> None:
    """Against counting: random boxes cover a tensor exactly once if and only if every element is counted once."""
    axes = [st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda p: range(min(p), max(p))) for size in dims]
    boxes = data.draw(st.lists(st.tuples(*axes), max_size=6))
    for axis, size in enumerate(dims):  # now and then a true tiling: cut the whole in two
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, size))
            whole = full_box(tuple(dims))
            boxes = [(*whole[:axis], part, *whole[axis + 1 :]) for part in (range(at), range(at, size))]
    counts = dict.fromkeys(product(*map(range, dims)), 0)
    for box in boxes:
        for index in product(*box):
            counts[index] += 1
    assert covers_once(boxes, tuple(dims)) == all(count == 1 for count in counts.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lazysd.graph.boxes.MAX_CORNER_AXES", 0)  # as for many axes
        assert covers_once(boxes, tuple(dims)) == all(count == 1 for count in counts.values())


def test_coverage_proof_pinned() -> None:
    whole = (range(4), range(6))
    assert covers_once([whole], (4, 6))
    assert covers_once([(range(4), range(2)), (range(4), range(2, 6))], (4, 6))
    assert not covers_once([(range(4), range(3)), (range(4), range(2, 6))], (4, 6))
    assert not covers_once([(range(4), range(2)), (range(4), range(3, 6))], (4, 6))
    assert not covers_once([whole, whole], (4, 6))


def test_coverage_of_many_axes_takes_a_moment() -> None:
    """Two to the power of 40 corners would not."""
    dims = (2,) * 40
    halves = [
        tuple(range(2) if axis != at else range(side, side + 1) for axis in range(40)) for at in (7,) for side in (0, 1)
    ]
    assert covers_once(halves, dims)
    assert not covers_once([halves[0], halves[0]], dims)
    odd = [tuple(range((number + axis) % 2, (number + axis) % 2 + 1) for axis in range(40)) for number in range(2)]
    assert not covers_once(odd, dims)
    assert not covers_once([*odd, *halves], dims)


def test_glue_joins_only_what_is_adjacent_on_both_sides() -> None:
    leaf = lazysd.from_torch(torch.arange(24).reshape(4, 6))
    left, right = leaf[:, :2].permute(1, 0), leaf[:, 2:].permute(1, 0)
    joined = list(glue([*dense_pieces(left, full_box(left.dims)), *dense_pieces(right, full_box(right.dims), 8)]))
    assert [piece.box for piece in joined] == [(range(4), range(6))]
    apart = list(glue([*dense_pieces(left, full_box(left.dims)), *dense_pieces(right, full_box(right.dims), 9)]))
    assert len(apart) == 2
    swapped = list(glue([*dense_pieces(right, full_box(right.dims)), *dense_pieces(left, full_box(left.dims), 16)]))
    assert len(swapped) == 2


def test_budget_decides_workers_and_tiles(golden: Path) -> None:
    converted = lazysd.open(golden / "qwen3_moe_tiny").convert("nemo")
    assert make_plan(converted, max_memory="1GB", workers=7).workers == 7
    tight = make_plan(converted, max_memory="17MB", workers=7)
    assert tight.workers < 7
    assert tight.peak_nbytes <= 17_000_000
    with pytest.raises(lazysd.errors.MemoryBudgetError, match="would do is 17MB"):
        make_plan(converted, max_memory="2MB")
    with pytest.raises(ValueError, match="at least 1"):
        make_plan(converted, workers=0)


def grouped_expert_of(nbytes: int) -> dict[str, lazysd.LazyTensor]:
    """Two experts to be transposed, on a file that nobody can read."""
    inner, hidden = nbytes // 8192, 4096
    file: Any = SimpleNamespace(path="/x", cost=COST)
    leaves = [LazyTensor(FileRange(file, e * nbytes), (), (inner, hidden), "BF16") for e in (0, 1)]
    return {"w": lazysd.stack(leaves).transpose(1, 2)}


@pytest.mark.parametrize(
    ("max_memory", "workers", "expected"),
    [
        ("1GB", 2, (2, 3)),  # room for an expert for each of three threads
        ("110MB", 2, (2, 2)),  # the spare thread goes first,
        ("110MB", 3, (3, 4)),  # but workers asked for by number stay, and rows are read in parts
        ("60MB", None, (1, 1)),  # unasked, fewer workers are better than rows read in parts
    ],
)
def test_whole_rows_come_before_threads(max_memory: str, workers: int | None, expected: tuple[int, int]) -> None:
    plan = make_plan(grouped_expert_of(32 << 20), max_memory=max_memory, workers=workers)
    assert (plan.workers, plan.threads) == expected
    assert plan.peak_nbytes <= plan.max_memory
    assert (plan.tile_nbytes >= 32 << 20) == (expected != (3, 4))


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (1000, 1000),
        ("1000", 1000),
        ("5GB", 5 * 10**9),
        ("5gb", 5 * 10**9),
        ("1GiB", 2**30),
        ("1.5 kB", 1500),
        ("2M", 2 * 10**6),
    ],
)
def test_sizes(text: int | str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1", "5XB", "1e9", 0, "0", True, "nan"])
def test_sizes_that_are_none(text: int | str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_nothing_is_lossy_only_where_every_bit_comes_back(golden: Path, tmp_path: Path) -> None:
    """Widening casts lose the payloads of NaNs, filters and slices lose tensors and rows: no claim is made for them."""
    source, claim = lazysd.open(golden / "qwen3_moe_tiny"), "every bit can be converted back"
    assert claim in str(source.convert("nemo").plan())
    assert source.convert("nemo").plan().notes == ()
    wide = source.map(lambda t: t.to(torch.float32)).plan()
    assert claim not in str(wide)
    assert wide.notes == ("payloads of NaNs, cast bf16 -> f32, may not come back (57 tensors)",)
    kept = source.drop("lm_head.weight")
    assert claim not in str(kept.plan())
    assert kept.plan().notes == ("4.1 kB of the source's tensors are left out",)
    assert kept.convert("nemo").plan().notes == kept.plan().notes
    rows = source | {"lm_head.weight": source["lm_head.weight"][:3]}
    assert claim not in str(rows.plan())
    assert claim not in str((source | {"again": source["lm_head.weight"]}).plan())


FLOATS = {
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@pytest.mark.parametrize("narrow", ["F8_E8M0", "F8_E4M3", "F8_E5M2", "F16", "BF16"])
@pytest.mark.parametrize("wide", ["F16", "BF16", "F32", "F64"])
def test_casts_that_claim_to_come_back_do_over_every_code(narrow: str, wide: str) -> None:
    """All codes of a type, widened and narrowed by torch: no losses and no notes mean that all are the same."""
    if FLOATS[narrow] == FLOATS[wide]:
        return
    size = FLOATS[narrow].itemsize
    codes = torch.arange(256**size).to({1: torch.uint8, 2: torch.int16}[size])
    values = codes.view(FLOATS[narrow])
    back = torch.cat([part.to(FLOATS[wide]).to(FLOATS[narrow]) for part in (values, values[:7], values[-7:])])
    same = torch.equal(back.view(codes.dtype), torch.cat([codes, codes[:7], codes[-7:]]))
    plan = lazysd.Checkpoint({"x": lazysd.from_torch(values)}).map(lambda t: t.to(FLOATS[wide])).plan()
    assert (not plan.lossy and not plan.notes) == same


def test_a_tensor_in_very_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are looked at one by one; what is kept of them until coverage is proved has a limit."""
    save_file({"x": torch.arange(100 * 21).view(100, 21)}, tmp_path / "x.safetensors")
    lazy = lazysd.open(tmp_path / "x.safetensors")["x"]
    tensors = {"rest": lazy[:50], "cut": lazy.T.reshape(-1)[::2], "strided": lazy.flatten()[::2]}
    assert make_plan(tensors).notes == ("1 source tensors are used in part, or more than once",)
    monkeypatch.setattr(plan, "MAX_BOXES", 10)
    assert make_plan(tensors).notes == ("1 source tensors are used in too many parts to prove that each is used once",)

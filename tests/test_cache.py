"""cached(): the same bits, read once, in a bounded number of bytes, whatever is asked for, by many threads."""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import bits, noise
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import lazysd
from lazysd.errors import ClosedCheckpointError
from lazysd.stores.base import File, Parts
from lazysd.tensor import cache

DATA = noise((4, 60, 50))


@pytest.fixture(autouse=True)
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of 1000 bytes: ten rows, so that tensors of a test have many."""
    monkeypatch.setattr(cache, "CELL_NBYTES", 1000)


@pytest.fixture
def ckpt(tmp_path: Path) -> Iterator[lazysd.Checkpoint]:
    save_file({"w": DATA, "v": DATA[0].clone()}, tmp_path / "m.safetensors")
    with lazysd.open(tmp_path / "m.safetensors", io="pread") as opened:
        yield opened


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(offset, nbytes) of each read."""
    noted: list[tuple[int, int]] = []
    read = File.read

    def noting(self: File, parts: Parts) -> None:
        for buffer, offset in parts:
            noted.append((offset, len(buffer)))
        read(self, parts)

    monkeypatch.setattr(File, "read", noting)
    return noted


def store_of(node: lazysd.LazyTensor) -> Any:
    return node.op.store


def kept_nbytes(node: lazysd.LazyTensor) -> int:
    """What the cache holds, counted from outside."""
    return sum(block.untyped_storage().nbytes() for block in store_of(node)._blocks.values())


def test_nothing_is_cached_unasked(ckpt: lazysd.Checkpoint, reads: list[tuple[int, int]]) -> None:
    for _ in range(2):
        ckpt["w"].materialize()
    assert sum(nbytes for _, nbytes in reads) == 2 * DATA.nbytes


def test_what_was_read_is_not_read_again(ckpt: lazysd.Checkpoint, reads: list[tuple[int, int]]) -> None:
    t = lazysd.cached(ckpt["w"])
    assert reads == []
    assert torch.equal(bits(t.materialize()), bits(DATA))
    assert sum(nbytes for _, nbytes in reads) == DATA.nbytes
    reads.clear()
    assert t.reads() == []
    for _ in range(2):
        assert torch.equal(bits(t.materialize()), bits(DATA))
        assert torch.equal(bits(t[2, 5:33, ::3].T.materialize()), bits(DATA[2, 5:33, ::3].T))
        assert torch.equal(bits(t.transpose(0, 2)[1:7].materialize()), bits(DATA.transpose(0, 2)[1:7]))
        assert torch.equal(bits(t[[3, 0], :, 7].materialize()), bits(DATA[[3, 0], :, 7]))
    assert reads == []


def test_a_slice_reads_itself_and_no_more(ckpt: lazysd.Checkpoint, reads: list[tuple[int, int]]) -> None:
    t = lazysd.cached(ckpt["w"])
    t[1, 3:5].materialize()  # smaller than a cell
    assert sum(nbytes for _, nbytes in reads) == 2 * 50 * 2
    reads.clear()
    assert t[1, 4].reads() == []
    assert torch.equal(bits(t[1, 4].materialize()), bits(DATA[1, 4]))
    assert reads == []
    promised = t[1].reads()
    t[1].materialize()  # the cell that is known in part is read whole, and the rest of the slice
    assert sum(nbytes for _, nbytes in reads) == sum(nbytes for _, _, nbytes in promised) == 60 * 50 * 2
    reads.clear()
    t[1].materialize()
    assert reads == []


def test_reads_says_what_would_be_read_now(ckpt: lazysd.Checkpoint) -> None:
    t = lazysd.cached(ckpt["w"])
    assert t.reads() == ckpt["w"].reads()
    t[0].materialize()
    ((_, offset, nbytes),) = t.reads()
    assert (offset - ckpt["w"].reads()[0][1], nbytes) == (60 * 50 * 2, 3 * 60 * 50 * 2)


@pytest.mark.parametrize("max_nbytes", [1, 2000, 2100, 5000, 20_000])
def test_the_bound_holds(ckpt: lazysd.Checkpoint, max_nbytes: int) -> None:
    t = lazysd.cached(ckpt["w"], max_nbytes)
    order = random.Random(0)
    held = 0
    for _ in range(60):
        key = (order.randrange(4), slice(order.randrange(30), order.randrange(31, 60)), slice(None, None, 1 + held % 2))
        assert torch.equal(bits(t[key].materialize()), bits(DATA[key]))
        assert kept_nbytes(t) <= store_of(t).nbytes <= max_nbytes
        held = max(held, kept_nbytes(t))
    assert held == 0 if max_nbytes < 2000 else held >= max_nbytes // 3


def test_the_least_recently_used_goes_first(ckpt: lazysd.Checkpoint) -> None:
    t = lazysd.cached(ckpt["w"], 3 * (1000 + cache.BLOCK_OVERHEAD_NBYTES))
    for rows in (0, 10, 20):
        t[0, rows : rows + 10].materialize()
    t[0, 0:10].materialize()
    t[0, 30:40].materialize()
    assert [bool(t[0, rows].reads()) for rows in (0, 10, 20, 30)] == [False, True, False, False]


def test_scattered_parts_of_a_cell_are_limited(ckpt: lazysd.Checkpoint) -> None:
    t = lazysd.cached(ckpt["w"])
    for column in range(50):
        assert torch.equal(bits(t[0, :10, column].materialize()), bits(DATA[0, :10, column]))
    (boxes,) = store_of(t)._boxes.values()
    assert len(boxes) == cache.MAX_BLOCKS_A_CELL
    t[0, :10].materialize()
    assert len(store_of(t)._blocks) == 1  # the whole takes the place of its parts
    assert store_of(t).nbytes == 1000 + cache.BLOCK_OVERHEAD_NBYTES


def test_editing_a_result_changes_nothing_kept(ckpt: lazysd.Checkpoint) -> None:
    t = lazysd.cached(ckpt["w"])
    for _ in range(3):
        t[1].materialize().view(torch.int16).add_(1)
        out = torch.zeros(60, 50, dtype=torch.bfloat16)
        t[1].materialize(out=out)
        assert torch.equal(bits(out), bits(DATA[1]))


@given(st.data())
def test_any_requests_in_any_order(data: st.DataObject) -> None:
    tensor = torch.arange(6 * 7 * 40, dtype=torch.int32).view(6, 7, 40)
    node = lazysd.from_torch(tensor)
    t = lazysd.cached(node, data.draw(st.sampled_from([1200, 3000, 9000, 10**6])))
    for _ in range(data.draw(st.integers(1, 6))):
        key = tuple(
            slice(data.draw(st.integers(0, n)), data.draw(st.integers(0, n)), data.draw(st.integers(1, 4)))
            for n in tensor.shape
        )
        assert torch.equal(t[key].materialize(), tensor[key])
        assert store_of(t).nbytes <= store_of(t).max_nbytes


def test_inside_graphs_and_over_computed_tensors(ckpt: lazysd.Checkpoint, reads: list[tuple[int, int]]) -> None:
    t = lazysd.cached(ckpt["v"].to(torch.float32))
    both = lazysd.stack([t, t], dim=1).reshape(120, 50).to(torch.float64)
    eager = torch.stack([DATA[0].float()] * 2, dim=1).reshape(120, 50).double()
    for _ in range(2):
        assert torch.equal(both.materialize().nan_to_num(), eager.nan_to_num())
    assert sum(nbytes for _, nbytes in reads) in (DATA[0].nbytes, 2 * DATA[0].nbytes)
    scalar = lazysd.cached(lazysd.from_torch(torch.tensor(5)))
    assert (scalar.materialize(), scalar.materialize()) == (5, 5)
    empty = lazysd.cached(lazysd.from_torch(torch.zeros(0, 3)))
    assert empty.materialize().shape == (0, 3)


def test_eviction_between_asking_and_computing(ckpt: lazysd.Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block is dropped as soon as it has been handed out; what holds it goes on with it."""
    t = lazysd.cached(ckpt["w"])
    t.materialize()
    get, count = cache._Store.get, [0]

    def dropping(self: Any, cell: Any, box: Any) -> Any:
        found = get(self, cell, box)
        for where in list(self._blocks):
            self._drop(*where)
        count[0] += found is not None
        return found

    monkeypatch.setattr(cache._Store, "get", dropping)
    for _ in range(3):
        assert torch.equal(bits(t.materialize()), bits(DATA))
    assert count[0] >= 1


def test_many_threads(ckpt: lazysd.Checkpoint) -> None:
    t = lazysd.cached(ckpt["w"], 30_000)
    wrong: list[Any] = []

    def work(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(40):
            key = (order.randrange(4), slice(order.randrange(30), order.randrange(31, 60)))
            if not torch.equal(bits(t[key].materialize()), bits(DATA[key])) or store_of(t).nbytes > 30_000:
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_plans_and_saves_look_through_caches(
    ckpt: lazysd.Checkpoint, tmp_path: Path, reads: list[tuple[int, int]]
) -> None:
    plain = ckpt.map(lambda node: node.reshape(-1, 50))
    with_caches = ckpt.map(lambda node: lazysd.cached(node).reshape(-1, 50))
    cold = with_caches.plan()
    with_caches["w"][30:70].materialize()
    warm = with_caches.plan()
    assert cold.as_dict() == warm.as_dict()
    assert (warm.read_nbytes, warm.peak_nbytes) == (plain.plan().read_nbytes, plain.plan().peak_nbytes)
    reads.clear()
    with_caches.save(tmp_path / "cached")
    assert sum(nbytes for _, nbytes in reads) == warm.read_nbytes == ckpt.nbytes
    plain.save(tmp_path / "plain")
    names = ("model.safetensors", "lazysd.manifest.json")
    cached_bytes, plain_bytes = ([(tmp_path / at / name).read_bytes() for name in names] for at in ("cached", "plain"))
    assert cached_bytes == plain_bytes  # the manifest holds the plan's digest
    assert torch.equal(bits(load_file(tmp_path / "cached" / names[0])["w"]), bits(DATA.view(-1, 50)))


def test_names_and_pickles(ckpt: lazysd.Checkpoint) -> None:
    t = lazysd.cached(ckpt["w"], "1MB")
    t.materialize()
    assert repr(t) == repr(ckpt["w"]).replace("m.safetensors", "cached m.safetensors")
    assert repr(t.op) == repr(lazysd.cached(ckpt["w"], "2MB").op)  # what a plan's digest sees
    assert len(pickle.dumps(t)) < 2000
    back = pickle.loads(pickle.dumps(t))
    assert (store_of(back).nbytes, store_of(back).max_nbytes) == (0, 1_000_000)
    assert torch.equal(bits(back[3].materialize()), bits(DATA[3]))
    with pytest.raises(ValueError, match="size"):
        lazysd.cached(ckpt["w"], "plenty")


def test_what_is_kept_outlives_closing(ckpt: lazysd.Checkpoint) -> None:
    t = lazysd.cached(ckpt["w"])
    t[0].materialize()
    ckpt.close()
    assert torch.equal(bits(t[0].materialize()), bits(DATA[0]))
    with pytest.raises(ClosedCheckpointError, match="closed checkpoint"):
        t[1].materialize()

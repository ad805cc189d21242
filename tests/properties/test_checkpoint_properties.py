"""Random checkpoints: nothing is read too early, nothing too much, and every way to the bytes gives the same bytes."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from checkpoints import assert_same, bits, by_hand, random_hf, write
from hypothesis import given, settings
from hypothesis import strategies as st

import lazysd
from lazysd.storage.reader import SourceFile

LAYOUTS = ("hf", "hf-fused", "nemo")
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.int64, torch.float8_e4m3fn]
PREFIXES = ["model.", "", "model.language_model.", "language_model.", "base_model.model.model."]

shapes = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
quick = settings(max_examples=60)


@contextmanager
def no_data_is_read() -> Iterator[None]:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"tensor data was read: {args[1:]}")

    with patch.object(SourceFile, "pread", refuse), patch.object(SourceFile, "view", refuse):
        yield


@contextmanager
def reads_noted() -> Iterator[list[tuple[str, int, int]]]:
    """Every read of tensor data while inside: (file, offset, nbytes)."""
    noted: list[tuple[str, int, int]] = []
    pread, view = SourceFile.pread, SourceFile.view

    def noting(self: SourceFile, buffer: memoryview, offset: int) -> None:
        noted.append((self.path, offset, len(buffer)))
        pread(self, buffer, offset)

    def viewing(self: SourceFile, offset: int, nbytes: int) -> memoryview | None:
        found = view(self, offset, nbytes)
        if found is not None:
            noted.append((self.path, offset, nbytes))
        return found

    with patch.object(SourceFile, "pread", noting), patch.object(SourceFile, "view", viewing):
        yield noted


def merged(ranges: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Touching ranges joined, as reads() writes them."""
    joined: list[tuple[str, int, int]] = []
    for path, start, nbytes in sorted(ranges):
        if not nbytes:
            continue
        if joined and joined[-1][0] == path and start <= joined[-1][1] + joined[-1][2]:
            stop = max(start + nbytes, joined[-1][1] + joined[-1][2])
            joined[-1] = (path, joined[-1][1], stop - joined[-1][1])
        else:
            joined.append((path, start, nbytes))
    return joined


@contextmanager
def checkpoint(shape: tuple[int, int, int, int], dtype: torch.dtype, prefix: str, shards: int) -> Iterator[Any]:
    """(path, state dict) of a random checkpoint on disk."""
    experts, hidden, inner, layers = shape
    tensors = random_hf(experts, hidden, inner, layers, dtype, prefix)
    with tempfile.TemporaryDirectory() as folder:
        config = {"model_type": "qwen3_moe", "num_experts": experts}
        yield write(Path(folder) / "ckpt", tensors, min(shards, len(tensors)), config), tensors


def use_without_data(path: Path) -> None:
    """Everything one may do with a checkpoint short of asking for values."""
    ckpt = lazysd.open(path)
    repr(ckpt), ckpt.nbytes, ckpt.layout, ckpt.config, ckpt.metadata
    for layout in LAYOUTS:
        converted = ckpt.convert(layout)
        str(converted.plan(max_shard_size=300))
        for key, node in converted.items():
            repr(node), node.shape, node.dtype, node.reads(), key
            last = node[..., -1:]
            repr(last.to(torch.float32)), last.reads()
            repr(lazysd.stack([node, node]).flatten().split(3))
    ckpt.select("*experts*").drop("*up*").rename(lambda key: "x." + key)
    ckpt.close()


@given(shapes, st.sampled_from(PREFIXES), st.integers(1, 4))
@quick
def test_no_data_is_read_before_it_is_asked_for(shape: Any, prefix: str, shards: int) -> None:
    with checkpoint(shape, torch.bfloat16, prefix, shards) as (path, _), no_data_is_read():
        use_without_data(path)


def test_no_data_is_read_pinned(golden: Path) -> None:
    with no_data_is_read():
        use_without_data(golden / "qwen3_moe_tiny")
        ckpt = lazysd.open(golden / "qwen3_moe_tiny")
        with pytest.raises(AssertionError, match="tensor data was read"):  # the guard itself works
            ckpt["model.norm.weight"].materialize()


@given(shapes, st.sampled_from(DTYPES), st.sampled_from(PREFIXES), st.integers(1, 4), st.permutations(LAYOUTS))
@quick
def test_there_and_back(shape: Any, dtype: torch.dtype, prefix: str, shards: int, order: list[str]) -> None:
    with checkpoint(shape, dtype, prefix, shards) as (path, tensors):
        ckpt = lazysd.open(path)
        away = ckpt
        for layout in order:
            away = away.convert(layout, source=away.layout or "hf")
        back = away.convert("hf")
        assert all(back[key] is ckpt[key] for key in ckpt)
        assert_same(back, tensors)
        for layer in range(shape[3]):
            for layout in ("nemo", "hf-fused"):
                for key, expected in by_hand(tensors, shape[0], layer, prefix)[layout].items():
                    assert torch.equal(bits(ckpt.convert(layout)[key].materialize()), expected.contiguous())


@given(shapes, st.sampled_from(DTYPES), st.integers(1, 4), st.sampled_from(list(permutations(LAYOUTS, 2))))
@quick
def test_saved_and_opened_again(shape: Any, dtype: torch.dtype, shards: int, pair: tuple[str, str]) -> None:
    """Through real files twice: hf -> a -> b -> hf, with odd shard sizes, workers and budgets on the way."""
    with checkpoint(shape, dtype, "model.", shards) as (path, tensors):
        away = path
        for number, layout in enumerate((*pair, "hf")):
            dst = path.parent / f"step{number}"
            size, workers = ((100, 1), (700, 2), ("5GB", 3))[number]
            lazysd.open(away).convert(layout).save(dst, max_shard_size=size, workers=workers)
            away = dst
        assert_same(lazysd.open(away), tensors)


@given(shapes, st.sampled_from(DTYPES), st.integers(1, 4), st.sampled_from(list(permutations(LAYOUTS, 2))), st.data())
@quick
def test_every_way_to_the_bytes_gives_the_same(
    shape: Any, dtype: torch.dtype, shards: int, pair: tuple[str, str], data: st.DataObject
) -> None:
    with checkpoint(shape, dtype, "model.", shards) as (path, _):
        source = path
        if pair[0] != "hf":
            source = path.parent / "source"
            lazysd.open(path).convert(pair[0]).save(source)
        mapped, copied = (lazysd.open(source, io=io).convert(pair[1]) for io in ("mmap", "pread"))
        for key, node in mapped.items():
            whole = node.materialize()
            assert torch.equal(bits(whole), bits(copied[key].materialize()))
            dim = data.draw(st.integers(0, node.ndim - 1))
            step = data.draw(st.integers(1, 3))
            parts = [part.materialize() for part in copied[key].split(step, dim)]
            assert torch.equal(bits(torch.cat(parts, dim)), bits(whole))
            out = torch.empty((*whole.shape, 2), dtype=whole.dtype)[..., 1]
            copied[key].materialize(out=out)
            assert torch.equal(bits(out), bits(whole))


@given(shapes, st.sampled_from(DTYPES), st.integers(1, 4), st.sampled_from(list(permutations(LAYOUTS, 2))), st.data())
@quick
def test_reads_are_exact(
    shape: Any, dtype: torch.dtype, shards: int, pair: tuple[str, str], data: st.DataObject
) -> None:
    with checkpoint(shape, dtype, "model.", shards) as (path, _):
        source = path.parent / "source"
        lazysd.open(path).convert(pair[0]).save(source)
        for io in ("mmap", "pread"):
            for _, node in lazysd.open(source, io=io).convert(pair[1]).items():
                part = node[
                    tuple(slice(data.draw(st.integers(0, n)), None, data.draw(st.integers(1, 2))) for n in node.dims)
                ]
                for wanted in (node, part):
                    with reads_noted() as noted:
                        wanted.materialize()
                    assert wanted.reads() == merged(noted)


@given(shapes, st.sampled_from(DTYPES), st.integers(1, 4), st.sampled_from(list(permutations(LAYOUTS, 2))),
       st.sampled_from([200, 1000, "5GB"]), st.integers(1, 3))  # fmt: skip
@quick
def test_a_save_reads_every_source_byte_once(
    shape: Any, dtype: torch.dtype, shards: int, pair: tuple[str, str], size: Any, workers: int
) -> None:
    with checkpoint(shape, dtype, "model.", shards) as (path, tensors):
        source = path.parent / "source"
        lazysd.open(path).convert(pair[0]).save(source)
        ckpt = lazysd.open(source, io="pread")
        with reads_noted() as noted:
            plan = ckpt.convert(pair[1]).save(path.parent / "out", max_shard_size=size, workers=workers)
        total = sum(tensor.nbytes for tensor in tensors.values())
        found = sum(nbytes for _, _, nbytes in noted)
        assert plan.read_nbytes == found
        everything = Counter({str(Path(file.path)): os.path.getsize(file.path) for file in ckpt.files})
        covered = Counter()
        for file, _, nbytes in merged(noted):
            covered[file] += nbytes
        assert sum(covered.values()) == total <= sum(everything.values())
        if size == "5GB":  # small shards may part tensors that share rows; those rows are then read for each of them
            assert found == total

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
from checkpoints import bits, by_hand, write
from hypothesis import given, settings
from hypothesis import strategies as st

import lazysd
from lazysd.stores.base import File
from lazysd.testing import assert_same_bytes, checkpoints, recorded_reads
from lazysd.testing.reading import merged

LAYOUTS = ("hf", "hf-fused", "nemo")

quick = settings(max_examples=60)


@contextmanager
def no_data_is_read() -> Iterator[None]:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"tensor data was read: {args[1:]}")

    with patch.object(File, "read", refuse), patch.object(File, "view", refuse):
        yield


def sizes_of(tensors: dict[str, torch.Tensor]) -> tuple[int, list[int], str]:
    """(number of experts, layers, prefix) of a drawn checkpoint."""
    routers = [key for key in tensors if key.endswith(".mlp.gate.weight")]
    layers = [int(key.split(".")[-4]) for key in routers]
    return len(tensors[routers[0]]), layers, next(iter(tensors)).removesuffix("embed_tokens.weight")


@contextmanager
def on_disk(tensors: dict[str, torch.Tensor], shards: int) -> Iterator[Path]:
    """The path of a drawn checkpoint, saved by safetensors."""
    with tempfile.TemporaryDirectory() as folder:
        config = {"model_type": "qwen3_moe", "num_experts": sizes_of(tensors)[0]}
        yield write(Path(folder) / "ckpt", tensors, min(shards, len(tensors)), config)


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


@given(checkpoints(), st.integers(1, 4))
@quick
def test_no_data_is_read_before_it_is_asked_for(tensors: Any, shards: int) -> None:
    with on_disk(tensors, shards) as path, no_data_is_read():
        use_without_data(path)


def test_no_data_is_read_pinned(golden: Path) -> None:
    with no_data_is_read():
        use_without_data(golden / "qwen3_moe_tiny")
        ckpt = lazysd.open(golden / "qwen3_moe_tiny")
        with pytest.raises(AssertionError, match="tensor data was read"):  # the guard itself works
            ckpt["model.norm.weight"].materialize()


@given(checkpoints(), st.integers(1, 4), st.permutations(LAYOUTS))
@quick
def test_there_and_back(tensors: Any, shards: int, order: list[str]) -> None:
    with on_disk(tensors, shards) as path:
        ckpt = lazysd.open(path)
        away = ckpt
        for layout in order:
            away = away.convert(layout, source=away.layout or "hf")
        back = away.convert("hf")
        assert all(back[key] is ckpt[key] for key in ckpt)
        assert_same_bytes(back, tensors)
        experts, layers, prefix = sizes_of(tensors)
        for layer in layers:
            for layout in ("nemo", "hf-fused"):
                for key, expected in by_hand(tensors, experts, layer, prefix)[layout].items():
                    assert torch.equal(bits(ckpt.convert(layout)[key].materialize()), expected.contiguous())


@given(checkpoints(), st.integers(1, 4), st.sampled_from(list(permutations(LAYOUTS, 2))))
@quick
def test_saved_and_opened_again(tensors: Any, shards: int, pair: tuple[str, str]) -> None:
    """Through real files twice: hf -> a -> b -> hf, with odd shard sizes, workers and budgets on the way."""
    with on_disk(tensors, shards) as path:
        away = path
        for number, layout in enumerate((*pair, "hf")):
            dst = path.parent / f"step{number}"
            size, workers = ((100, 1), (700, 2), ("5GB", 3))[number]
            lazysd.open(away).convert(layout).save(dst, max_shard_size=size, workers=workers)
            away = dst
        assert_same_bytes(lazysd.open(away), tensors)


@given(checkpoints(), st.integers(1, 4), st.sampled_from(list(permutations(LAYOUTS, 2))), st.data())
@quick
def test_every_way_to_the_bytes_gives_the_same(
    tensors: Any, shards: int, pair: tuple[str, str], data: st.DataObject
) -> None:
    with on_disk(tensors, shards) as path:
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


@given(checkpoints(), st.integers(1, 4), st.sampled_from(list(permutations(LAYOUTS, 2))), st.data())
@quick
def test_reads_are_exact(tensors: Any, shards: int, pair: tuple[str, str], data: st.DataObject) -> None:
    with on_disk(tensors, shards) as path:
        source = path.parent / "source"
        lazysd.open(path).convert(pair[0]).save(source)
        for io in ("mmap", "pread"):
            for _, node in lazysd.open(source, io=io).convert(pair[1]).items():
                part = node[
                    tuple(slice(data.draw(st.integers(0, n)), None, data.draw(st.integers(1, 2))) for n in node.dims)
                ]
                for wanted in (node, part):
                    with recorded_reads() as noted:
                        wanted.materialize()
                    assert wanted.reads() == merged(noted)


@given(checkpoints(), st.integers(1, 4), st.sampled_from(list(permutations(LAYOUTS, 2))),
       st.sampled_from([200, 1000, "5GB"]), st.integers(1, 3))  # fmt: skip
@quick
def test_a_save_reads_every_source_byte_once(
    tensors: Any, shards: int, pair: tuple[str, str], size: Any, workers: int
) -> None:
    with on_disk(tensors, shards) as path:
        source = path.parent / "source"
        lazysd.open(path).convert(pair[0]).save(source)
        ckpt = lazysd.open(source, io="pread")
        with recorded_reads() as noted:
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

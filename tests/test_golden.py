"""Files written by the real tools, from every layout to every other: bit for bit, and back to the very leaves."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from checkpoints import assert_same, bits, write
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lazysd

FILES = {
    "hf": "qwen3_moe_tiny",
    "hf-fused": "qwen3_moe_tiny_fused.safetensors",
    "nemo": "qwen3_moe_tiny_native.safetensors",
}
PAIRS = list(permutations(FILES, 2))


def eager(golden: Path, layout: str) -> dict[str, torch.Tensor]:
    path = golden / FILES[layout]
    if path.is_file():
        return load_file(path)
    return {key: tensor for file in sorted(path.glob("*.safetensors")) for key, tensor in load_file(file).items()}


@pytest.mark.parametrize("layout", FILES)
def test_detected(golden: Path, layout: str) -> None:
    ckpt = lazysd.open(golden / FILES[layout])
    assert (ckpt.layout, ckpt.family) == (layout, "qwen3_moe")
    assert_same(ckpt, eager(golden, layout))


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_pair(golden: Path, source: str, target: str, io: str) -> None:
    ckpt = lazysd.open(golden / FILES[source], io=io)
    assert_same(ckpt.convert(target), eager(golden, target))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_there_and_back_are_the_very_leaves(golden: Path, source: str, target: str) -> None:
    ckpt = lazysd.open(golden / FILES[source])
    back = ckpt.convert(target).convert(source)
    assert {key: id(node) for key, node in back.items()} == {key: id(node) for key, node in ckpt.items()}


@pytest.mark.parametrize("middle", FILES)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_detour_changes_nothing(golden: Path, source: str, middle: str, target: str) -> None:
    ckpt = lazysd.open(golden / FILES[source])
    assert_same(ckpt.convert(middle).convert(target), eager(golden, target))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_plain_tensors_by_the_same_graph(golden: Path, source: str, target: str) -> None:
    found = lazysd.convert(eager(golden, source), to=target)
    assert all(type(tensor) is torch.Tensor for tensor in found.values())
    assert_same(found, eager(golden, target))


@pytest.mark.parametrize("max_shard_size", ["5GB", 20_000])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_saved_files_hold_the_same_bits(
    golden: Path, tmp_path: Path, source: str, target: str, max_shard_size: int | str
) -> None:
    lazysd.open(golden / FILES[source]).convert(target).save(tmp_path / "out", max_shard_size=max_shard_size)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(shards) > 1) == (max_shard_size != "5GB")
    found = {}
    for shard in shards:
        with safe_open(shard, "pt") as file:  # a reader that is not ours
            assert file.metadata() == {"format": "pt"}
            found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    assert_same(found, eager(golden, target))


def test_one_bit_more_is_noticed(golden: Path, tmp_path: Path) -> None:
    """The comparison these tests rest on can fail."""
    tensors = eager(golden, "nemo")
    key = "model.layers.1.mlp.experts.down_projs"
    bits(tensors[key])[5, 3, 31] ^= 1  # contiguous, so this is the tensor itself
    write(tmp_path, tensors)
    with pytest.raises(AssertionError, match="experts\\.down_projs"):
        assert_same(lazysd.open(tmp_path), eager(golden, "nemo"))


def test_the_single_file_and_its_folder_are_one_checkpoint(golden: Path, tmp_path: Path) -> None:
    save_file(eager(golden, "hf"), tmp_path / "model.safetensors")
    assert_same(lazysd.open(tmp_path), lazysd.open(golden / "qwen3_moe_tiny"))
    assert_same(lazysd.open(tmp_path / "model.safetensors"), lazysd.open(golden / "qwen3_moe_tiny"))

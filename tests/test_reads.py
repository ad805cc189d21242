"""reads(): which bytes a tensor takes, worked out by hand for one checkpoint of E=3, H=4, I=5 in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from checkpoints import expert_key, random_hf, write
from safetensors import safe_open

import lazysd
from lazysd.formats.safetensors.header import read_header
from lazysd.stores.base import File, Parts
from lazysd.stores.local import LocalFile

GATE_UP = "model.layers.0.mlp.experts.gate_and_up_projs"
DOWN = "model.layers.0.mlp.experts.down_projs"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "src", random_hf(), config={"num_experts": 3}) / "model.safetensors"


def noted(node: Any) -> list[tuple[str, int, int]]:
    """What materialising a tensor reads, touching ranges joined."""
    calls: list[tuple[str, int, int]] = []
    read = File.read

    def noting(self: File, parts: Parts) -> None:
        for buffer, offset in parts:
            calls.append((self.path, offset, len(buffer)))
        read(self, parts)

    with patch.object(File, "read", noting):
        node.materialize()
    joined: list[tuple[str, int, int]] = []
    for file, start, nbytes in sorted(calls):
        if joined and joined[-1][0] == file and start == joined[-1][1] + joined[-1][2]:
            joined[-1] = (file, joined[-1][1], joined[-1][2] + nbytes)
        else:
            joined.append((file, start, nbytes))
    return joined


def test_a_plain_tensor_is_its_byte_range(path: Path) -> None:
    entry = read_header(LocalFile(str(path))).entries["model.embed_tokens.weight"]
    node = lazysd.open(path, io="pread")["model.embed_tokens.weight"]
    assert node.reads() == noted(node) == [(str(path), entry.start, entry.stop - entry.start)]
    assert node[2:4].reads() == noted(node[2:4]) == [(str(path), entry.start + 2 * 4 * 2, 2 * 4 * 2)]


def test_one_expert_of_a_group_reads_that_expert(path: Path) -> None:
    entries = read_header(LocalFile(str(path))).entries
    node = lazysd.open(path, io="pread").convert("nemo")[GATE_UP][1]
    parts = sorted(entries[expert_key(1, name)][2:] for name in ("gate", "up"))
    total = sum(stop - start for start, stop in parts)
    assert sum(nbytes for _, _, nbytes in node.reads()) == total == 2 * 5 * 4 * 2
    assert node.reads() == noted(node)
    assert all(any(start <= at and at + n <= stop for start, stop in parts) or n == total for _, at, n in node.reads())


@pytest.mark.parametrize(("key", "half"), [((slice(None), slice(None), slice(0, 5)), "gate"),
                                           ((slice(None), slice(None), slice(5, 10)), "up")])  # fmt: skip
def test_half_of_the_gate_up_axis_reads_that_projection(path: Path, key: Any, half: str) -> None:
    entries = read_header(LocalFile(str(path))).entries
    node = lazysd.open(path, io="pread").convert("nemo")[GATE_UP][key]
    expected = {at for e in range(3) for at in range(*entries[expert_key(e, half)][2:])}
    assert {at for _, start, n in node.reads() for at in range(start, start + n)} == expected
    assert node.reads() == noted(node)


def test_rows_of_a_transposed_axis_read_no_more_than_the_expert(path: Path) -> None:
    """Column 2 of one down projection: strided rows of the source, read along their small gaps."""
    start, stop = read_header(LocalFile(str(path))).entries[expert_key(2, "down")][2:]
    node = lazysd.open(path, io="pread").convert("nemo")[DOWN][2, 2]
    assert node.reads() == noted(node) == [(str(path), start + 2 * 2, 3 * 5 * 2 + 2)]
    assert stop - start == 4 * 5 * 2


def test_the_whole_group_reads_all_experts_once(path: Path) -> None:
    node = lazysd.open(path, io="pread").convert("nemo")[GATE_UP]
    assert sum(nbytes for _, _, nbytes in node.reads()) == node.nbytes == 3 * 4 * 10 * 2
    assert node.reads() == noted(node)


def test_an_empty_slice_reads_nothing(path: Path) -> None:
    ckpt = lazysd.open(path, io="pread")
    for node in (ckpt.convert("nemo")[GATE_UP][3:], ckpt["model.embed_tokens.weight"][:, 4:]):
        assert node.reads() == noted(node) == []
        assert node.materialize().numel() == 0


def test_a_tensor_used_twice_is_listed_once(path: Path) -> None:
    node = lazysd.open(path, io="pread")["model.embed_tokens.weight"]
    assert lazysd.stack([node, node]).reads() == node.reads()


def test_tensors_in_memory_read_nothing() -> None:
    assert lazysd.from_torch(torch.zeros(3)).reads() == []


def test_offsets_are_where_another_reader_finds_the_bytes(path: Path) -> None:
    with safe_open(path, "pt") as file:
        for key, node in lazysd.open(path).items():
            ((name, offset, nbytes),) = node.reads()
            raw = Path(name).read_bytes()[offset : offset + nbytes]
            assert raw == bytes(file.get_tensor(key).flatten().view(torch.uint8).tolist())

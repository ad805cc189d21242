"""Tensors larger than a block, a tile and a buffer, of awkward sizes, through every path: against eager torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import assert_same, bits, by_hand, random_hf, write

import lazysd
from lazysd.move.blocks import READ_NBYTES, blocks

Source = tuple[Path, dict[str, torch.Tensor]]
# one expert is about 1.4 MB, 2 MB, 6 MB: around the block of 1 MB, none a multiple of anything
SHAPES = [(5, 1021, 677, torch.bfloat16), (3, 2053, 257, torch.float32), (2, 1300, 1201, torch.float64)]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "x".join(map(str, shape[:3])))
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    experts, hidden, inner, dtype = request.param
    hf = random_hf(experts, hidden, inner, 1, dtype)
    folder = tmp_path_factory.mktemp("large")
    return write(folder / "hf", hf, 3, {"num_experts": experts}), hf


@pytest.mark.parametrize(
    ("max_memory", "workers", "max_shard_size"), [("18MB", 1, "5GB"), ("40MB", 2, "7MB"), ("1GB", 3, "3MB")]
)
def test_saves(source: Source, tmp_path: Path, max_memory: str, workers: int, max_shard_size: str) -> None:
    path, hf = source
    experts = hf["model.layers.0.mlp.gate.weight"].shape[0]
    away = path
    for number, layout in enumerate(("nemo", "hf-fused", "nemo", "hf")):
        dst = tmp_path / f"{number}-{layout}"
        converted = lazysd.open(away).convert(layout)
        plan = converted.save(dst, max_memory=max_memory, workers=workers, max_shard_size=max_shard_size)
        assert plan.peak_nbytes <= plan.max_memory
        if layout != "hf":
            for key, expected in by_hand(hf, experts)[layout].items():
                assert torch.equal(bits(lazysd.open(dst)[key].materialize()), expected.contiguous())
        away = dst
    assert_same(lazysd.open(away), hf)


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_on_demand(source: Source, io: str) -> None:
    path, hf = source
    experts = hf["model.layers.0.mlp.gate.weight"].shape[0]
    for layout, tensors in by_hand(hf, experts).items():
        converted = lazysd.open(path, io=io).convert(layout)
        for key, expected in tensors.items():
            node, (e, a, b) = converted[key], expected.shape
            assert torch.equal(bits(node.materialize()), expected.contiguous())
            cuts = [
                (e - 1,),
                (slice(None), 7),
                (slice(None), slice(None), b // 2),
                (slice(1, None, 2), slice(a // 3, None, 5)),
                (..., slice(b // 2 - 3, b // 2 + 4)),
                (0, slice(1, None), slice(None, -1)),
            ]
            for cut in cuts:
                assert torch.equal(bits(node[cut].materialize()), expected[cut].contiguous()), cut
            wide = torch.zeros(e, b, a + 3, dtype=node.dtype)
            node.materialize(out=wide[..., 1:-2].transpose(1, 2))
            assert torch.equal(bits(wide[..., 1:-2].transpose(1, 2).contiguous()), expected.contiguous())
            assert not wide[..., :1].any()
            assert not wide[..., -2:].any()
            back = converted.convert("hf")
            for name, tensor in hf.items():
                assert back[name].reads() == lazysd.open(path)[name].reads()
                assert torch.equal(bits(back[name].materialize()), bits(tensor))


def test_reads_of_few_bytes_are_not_all_asked_for_at_once() -> None:
    """A column of a wide tensor: each element is a read, and takes more memory than it has bytes."""
    dims = (1 << 16, 1 << 14)
    found = list(blocks((range(1 << 16), range(5, 6)), dims, 2, (1, 1), 1 << 20))
    assert max(block.run.num_hulls for block in found) == (1 << 20) // READ_NBYTES
    assert sum(block.run.num_hulls for block in found) == 1 << 16

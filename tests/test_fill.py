"""The one mover: tensors larger than its constants, cut across gaps; where the pinned values come from is torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.stores.local import COST
from lazysd.testing import assert_same_bytes

WIDE = torch.arange(2 * 4096, dtype=torch.float32).view(2, 4096)
DEEP = torch.arange(4 * 64 * 4096, dtype=torch.int32).to(torch.int16).view(4, 64, 4096).view(torch.bfloat16)
ODD = torch.arange(15 * 4096, dtype=torch.int32).view(15, 4096)


@pytest.fixture(params=["mmap", "pread"])
def ckpt(request: pytest.FixtureRequest, tmp_path: Path) -> lazysd.Checkpoint:
    save_file({"wide": WIDE, "deep": DEEP, "odd": ODD}, tmp_path / "m.safetensors")
    return lazysd.open(tmp_path / "m.safetensors", io=request.param)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("wide", (slice(None), slice(None, 4, 3))),  # 2 hulls of 4 elements, gaps included: as many as the box's 4
        ("deep", (slice(None, 3), slice(None, 3), slice(None, 1024))),
        ("deep", (slice(None, None, 2), slice(5), slice(0, 4096, 5))),
        ("odd", (slice(None, None, 7), slice(None, 7, 3))),
        ("odd", (slice(1, 3), slice(0, 3, 2))),
    ],
)
def test_slices_whose_rows_lie_further_apart_than_the_gap(ckpt: lazysd.Checkpoint, name: str, key: Any) -> None:
    source = {"wide": WIDE, "deep": DEEP, "odd": ODD}[name]
    assert source.stride(0) * source.element_size() > COST.gap_nbytes
    assert_same_bytes(ckpt[name][key].materialize(), source[key])


def test_every_small_strided_slice(ckpt: lazysd.Checkpoint) -> None:
    for rows in (slice(None, 2), slice(None, 3), slice(3, None, 4), slice(None, None, 7)):
        for start in (0, 1, 4090):
            for length in range(1, 8):
                for step in range(1, 5):
                    key = (rows, slice(start, start + length, step))
                    assert_same_bytes(ckpt["odd"][key].materialize(), ODD[key])

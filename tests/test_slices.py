"""Slices as users write them, on checkpoints in a file: torch's result, torch's refusals, and the bytes they read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import expert_key, random_hf, write
from safetensors.torch import save_file

import lazysd
from lazysd.testing import assert_reads_only, assert_same_bytes

X = torch.arange(2 * 6 * 4 * 5, dtype=torch.int16).view(2, 6, 4, 5)
MASK = torch.tensor([True, False, True, False, False, True])


@pytest.fixture
def t(tmp_path: Path) -> Iterator[lazysd.LazyTensor]:
    save_file({"x": X}, tmp_path / "m.safetensors")
    with lazysd.open(tmp_path / "m.safetensors") as ckpt:
        yield ckpt["x"]


SAME: dict[str, Any] = {
    "int": 1,
    "negative int": -2,
    "slice": slice(1, None),
    "as in the issue": (slice(0, 1), slice(None), slice(None, None, 2)),
    "ellipsis": (..., -1),
    "ellipsis in between": (0, ..., 1),
    "list": (slice(None), [0, 5]),
    "list, out of order and twice": (slice(None), [5, 0, 0, -1]),
    "empty list": (slice(None), []),
    "mask": (slice(None), MASK),
    "list of bools": (slice(None), [True, False, True, False, False, True]),
    "empty mask": (slice(None), torch.zeros(6, dtype=torch.bool)),
    "numpy mask": (slice(None), MASK.numpy()),
    "tensor": (slice(None), torch.tensor([2, 1])),
    "tensor of int32": (slice(None), torch.tensor([2, 1], dtype=torch.int32)),
    "tensor of two axes": (slice(None), torch.tensor([[2, 1, 0], [3, 4, 5]])),
    "list of lists beside others": (slice(None), [[2, 1], [3, 4]]),
    "numpy array": (slice(None), np.array([4, 2])),
    "range": (slice(None), range(1, 6, 2)),
    "0-d tensor": (torch.tensor(1),),
    "numpy integer": (np.int64(1),),
    "int and list": (0, [1, 2]),
    "int and list apart": (0, slice(None), [1, 2]),
    "list and int apart": ([0, 1], slice(None), 1),
    "list, axis and int": (slice(None), [1, 2], None, 0),
    "mask and int": (slice(None), MASK, slice(None), 0),
    "new axes": (None, 0, None, ..., None),
    "beyond the end": (slice(-99, 99), slice(7, 99)),
    "nothing": (),
}


@pytest.mark.parametrize("name", SAME)
def test_torch_gives_the_same(t: lazysd.LazyTensor, name: str) -> None:
    key, wanted = SAME[name], X[SAME[name]]
    part = assert_reads_only(lambda: t[key])
    assert part.shape == wanted.shape
    assert torch.equal(part.materialize(), wanted)


def test_indexing_by_a_lazy_tensor(t: lazysd.LazyTensor) -> None:
    rows = lazysd.from_torch(torch.tensor([4, 1]))
    assert torch.equal(t[:, rows].materialize(), X[:, [4, 1]])
    assert torch.equal(t[:, lazysd.from_torch(MASK)].materialize(), X[:, MASK])


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "negative step": (slice(None, None, -1), ValueError, "step must be positive, got -1; materialise and flip"),
    "zero step": (slice(None, None, 0), ValueError, "must be positive, got 0"),
    "out of range": (2, IndexError, "index 2 is out of bounds for axis 0 of size 2"),
    "list out of range": ((slice(None), [0, 6]), IndexError, "index 6 is out of bounds for axis 1 of size 6"),
    "too many": ((0, 0, 0, 0, 0), IndexError, r"too many indices \(5\)"),
    "two ellipses": ((..., 0, ...), IndexError, "one ellipsis"),
    "mask of another size": ((MASK,), IndexError, r"mask of shape \[6\] does not fit axis 0 of size 2"),
    "mask of several axes": (torch.ones(2, 6, dtype=torch.bool), IndexError, "several axes, materialise first"),
    "pairs of lists": (([0, 1], [1, 2]), IndexError, "only one axis may take a list"),
    "uint8, a mask to torch": ((slice(None), MASK.to(torch.uint8)), IndexError, r"index.bool\(\) or index.long\(\)"),
    "uint8 scalar": (torch.tensor(1, dtype=torch.uint8), IndexError, r"int\(index\)"),
    "a list for a tuple": ([[0, 1], [1, 0]], IndexError, "torch takes it for a tuple"),
    "floats": ((torch.tensor([1.0]),), IndexError, "float64"),
    "a word": ("w", IndexError, "str 'w'"),
    "a bool": (True, IndexError, "use None to add an axis"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(t: lazysd.LazyTensor, name: str) -> None:
    key, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        assert_reads_only(lambda: t[key])


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_one_expert_reads_that_expert(tmp_path: Path, io: str) -> None:
    """By index, slice, list and mask, through the transposed layout: gate and up of expert 2, to the byte."""
    hf = random_hf(experts=5, hidden=12, inner=8)
    ckpt = lazysd.open(write(tmp_path / "src", hf, 2, config={"num_experts": 5}), io=io)
    key = "model.layers.0.mlp.experts.gate_and_up_projs"
    grouped = ckpt.convert("nemo")[key]
    parts = [ckpt[expert_key(2, name)] for name in ("gate", "up")]
    eager = torch.cat([hf[expert_key(2, name)] for name in ("gate", "up")]).T
    mask = torch.arange(5) == 2
    for one in (grouped[2], grouped[2:3][0], grouped[[2]][0], grouped[mask][0], grouped[torch.tensor(2)], grouped[-3]):
        assert_same_bytes(assert_reads_only(one.materialize, parts, exactly=True), eager)
    for half, part in zip(grouped[2].split(8, dim=1), parts, strict=True):
        assert_reads_only(half.materialize, [part], exactly=True)
    last = grouped[2][:, 3:5]
    assert_reads_only(last.materialize, [parts[0][3:5]], exactly=True)
    assert sum(nbytes for _, _, nbytes in last.reads()) == 2 * 12 * 2

"""Tensors that somebody else made: which are filled, which are refused, which are still being read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lazysd
from lazysd.move.target import overlaps_itself


@pytest.mark.parametrize(
    ("dims", "strides", "overlapping"),
    [
        ((3, 4), (4, 1), False),
        ((3, 4), (1, 3), False),
        ((3, 4), (0, 1), True),
        ((3, 4), (1, 1), True),
        ((4, 4), (2, 1), True),
        ((2, 3), (3, 2), False),  # interleaved, yet every element has a place of its own
        ((2, 4), (4, 2), True),
        ((1, 4), (0, 1), False),
        ((0, 4), (0, 0), False),
        ((), (), False),
    ],
)
def test_elements_that_share_a_place(dims: tuple[int, ...], strides: tuple[int, ...], overlapping: bool) -> None:
    target = torch.zeros(64).as_strided(dims, strides)
    assert overlaps_itself(target) is overlapping
    source = torch.arange(float(target.numel())).reshape(dims)
    if overlapping:
        with pytest.raises(ValueError, match="several of its elements share one place"):
            lazysd.from_torch(source).materialize(out=target)
    else:
        assert torch.equal(lazysd.from_torch(source).materialize(out=target), source)


def test_memory_that_is_shared_through_numpy_is_read_before_it_is_written() -> None:
    array = np.arange(12, dtype=np.float32)
    source, target = torch.from_numpy(array[:9].reshape(3, 3)), torch.from_numpy(array[1:10].reshape(3, 3))
    expected = source.T.clone()
    assert torch.equal(lazysd.from_torch(source).permute(1, 0).materialize(out=target), expected)

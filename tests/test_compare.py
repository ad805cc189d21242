"""Comparing bit by bit: every kind of difference is found and placed, NaN payloads and signed zeros included."""

from __future__ import annotations

import pytest
import torch

import lazysd
from lazysd import reduction
from lazysd.comparison import compare


def lazy(**tensors: torch.Tensor) -> dict[str, lazysd.LazyTensor]:
    return {key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}


def test_equal() -> None:
    tensors = {"a": torch.randn(5, 7), "b": torch.tensor(float("nan")), "c": torch.zeros(0, 3)}
    result = compare(lazy(**tensors), lazy(**{key: tensor.clone() for key, tensor in tensors.items()}))
    assert (result.equal, result.num_equal) == (True, 3)
    assert result.compared_nbytes == sum(t.nbytes for t in tensors.values())


def test_kinds() -> None:
    ours = lazy(
        same=torch.ones(2), shape=torch.ones(2), dtype=torch.ones(2), extra=torch.ones(1), value=torch.ones(2, 3)
    )
    value = torch.ones(2, 3)
    value[1, 2] = 5
    theirs = lazy(
        same=torch.ones(2), shape=torch.ones(3), dtype=torch.ones(2).half(), missing=torch.ones(1), value=value
    )
    found = {difference.key: difference for difference in compare(ours, theirs, ("A", "B")).differences}
    assert {key: difference.kind for key, difference in found.items()} == {
        "missing": "missing", "extra": "extra", "shape": "shape", "dtype": "dtype", "value": "values",
    }  # fmt: skip
    assert found["value"].position == (1, 2)
    assert "1 of 6 elements differ; the first at [1, 2]: 1.0 against 5.0" in found["value"].detail


@pytest.mark.parametrize(("a", "b"), [(0.0, -0.0), (float("nan"), float("nan"))])
def test_equal_numbers_with_other_bits_differ(a: float, b: float) -> None:
    x, y = torch.tensor([1.0, a]), torch.tensor([1.0, b])
    if a != a:
        y.view(torch.int32)[1] ^= 1  # another NaN payload
    (found,) = compare(lazy(t=x), lazy(t=y)).differences
    assert found.position == (1,)
    assert "bits" in found.detail


@pytest.mark.parametrize("num_workers", [1, 4])
def test_the_first_place_is_the_first_whatever_the_tiles(monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    monkeypatch.setattr(reduction, "PREFERRED_TILE_NBYTES", 64)
    monkeypatch.setattr(reduction, "MOST_NBYTES", 64)
    x = torch.arange(600).reshape(10, 60)
    y = x.clone()
    y[3, 40] = y[3, 41] = y[9, 59] = -1
    (found,) = compare(lazy(t=x), lazy(t=y), num_workers=num_workers).differences
    assert (found.position, found.num_different) == ((3, 40), 3)


def test_without_values_nothing_is_read() -> None:
    result = compare(lazy(t=torch.zeros(3)), lazy(t=torch.ones(3)), values=False)
    assert result.equal
    assert result.compared_nbytes == 0

"""How work is cut and joined: glued pieces ask for the same elements in the same places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.graph.base import Piece
from lazysd.move.tiling import glue
from lazysd.testing import assert_same_bytes


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (2, 5), (3, 2), (3, 4), (4, 3), (5, 2)])
def test_a_save_of_a_folded_transpose(tmp_path: Path, rows: int, columns: int) -> None:
    source = torch.arange(rows * columns, dtype=torch.float32)
    for dims in ((rows * columns,), (columns, rows), (rows, columns)):
        save_file({"t": source.reshape(dims)}, tmp_path / "m.safetensors")
        turned = lazysd.open(tmp_path / "m.safetensors").map(lambda t: t.reshape(rows, columns).T)
        turned.save(tmp_path / "out", overwrite=True)
        assert_same_bytes(lazysd.open(tmp_path / "out")["t"].materialize(), source.reshape(rows, columns).T)


def test_pieces_that_run_backwards_stay_apart() -> None:
    node = lazysd.from_torch(torch.arange(6.0).reshape(3, 2))
    first = Piece(node, (range(1, 2), range(1)), 4, (0, 2))
    second = Piece(node, (range(1, 2), range(1, 2)), 1, (0, 2))
    assert list(glue([first, second])) == [first, second]
    forwards = second._replace(offset=6)
    assert list(glue([first, forwards])) == [Piece(node, (range(1, 2), range(2)), 4, (0, 2))]

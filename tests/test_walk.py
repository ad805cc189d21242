"""Walks: each node once, inputs first, however deep; deep graphs pickle, print, plan and draw."""

from __future__ import annotations

import copy
import pickle
from itertools import islice
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.graph.base import Piece
from lazysd.graph.boxes import MAX_PHASES, box_dims
from lazysd.graph.compute import Cast
from lazysd.graph.leaves import Full
from lazysd.graph.node import MAX_PICKLED_DEPTH
from lazysd.graph.spec import flatten, rebuild
from lazysd.graph.walk import below, dense_pieces, is_deeper, nodes
from lazysd.tensor.lazy import LazyTensor

DEEP = 5000


def deep(depth: int) -> LazyTensor:
    """A chain that no rewrite shortens: casts that change the values' type back and forth."""
    node = lazysd.from_torch(torch.arange(6.0).reshape(2, 3))
    for number in range(depth):
        code = ("F64", "F32")[number % 2]
        node = LazyTensor(Cast(code), (node,), node.dims, code)
    return node


def test_nodes_come_once_inputs_first() -> None:
    leaf = lazysd.from_torch(torch.ones(2))
    one, two = leaf.to(torch.float64), lazysd.stack([leaf, leaf])
    root = lazysd.stack([one, one])
    found = list(nodes([root, two, root]))
    assert len(found) == len({id(node) for node in found}) == 4
    place = {id(node): number for number, node in enumerate(found)}
    assert all(place[id(part)] < place[id(node)] for node in found for part in node.inputs)


def test_below_goes_on_through_what_is_computed() -> None:
    leaf = lazysd.from_torch(torch.arange(4.0))
    node = lazysd.stack([leaf.to(torch.float64), lazysd.from_torch(torch.zeros(4, dtype=torch.float64))])
    found = [type(piece.node.op).__name__ for piece in below(dense_pieces(node))]
    assert sorted(found) == ["Cast", "InMemory", "InMemory"]

    def halved(piece: Piece) -> list[Piece]:
        axis = piece.box[0]
        return [piece._replace(box=(part,)) for part in (axis[: len(axis) // 2], axis[len(axis) // 2 :])]

    twice = leaf.to(torch.float64).to(torch.float16)
    found = [type(piece.node.op).__name__ for piece in below(dense_pieces(twice), halved)]
    assert found == ["Cast", *["Cast", "InMemory", "InMemory"] * 2]


@pytest.mark.parametrize("depth", [3, MAX_PICKLED_DEPTH - 1, MAX_PICKLED_DEPTH + 1, DEEP])
def test_a_graph_of_any_depth_pickles(depth: int) -> None:
    node = deep(depth)
    assert is_deeper(node, depth - 1)
    assert not is_deeper(node, depth + 1)
    again = pickle.loads(pickle.dumps(node))
    assert [row[1:] for row in flatten(again)][1:] == [row[1:] for row in flatten(node)][1:]
    if depth < 200:
        assert torch.equal(again.materialize(), node.materialize())
    assert copy.deepcopy(node) is node


def test_what_several_tensors_share_stays_shared() -> None:
    base = lazysd.from_torch(torch.arange(6.0)).to(torch.float64)
    pair = pickle.loads(pickle.dumps({"a": base[:3], "b": base[3:]}))
    assert pair["a"].inputs[0] is pair["b"].inputs[0]
    assert rebuild(flatten(base)).dims == base.dims


def test_deep_graphs_print_plan_and_draw() -> None:
    node = deep(DEEP)
    assert "LazyTensor(f32[2, 3]" in repr(node) or "LazyTensor(f64[2, 3]" in repr(node)
    assert node.reads() == []
    assert len(lazysd.Checkpoint({"x": node}).plan().lossy) >= 1
    assert "<" in node._repr_html_()


def test_strided_views_cost_what_they_ask_for() -> None:
    """Of 2^42 rows, none but those with an element that is wanted is looked at; pieces come one by one."""
    huge = LazyTensor(Full(0.0), (), (1 << 42, 3), "F32")
    assert len(list(dense_pieces(huge.flatten()[:: 1 << 40]))) == 3
    assert len(list(dense_pieces(huge.flatten()[:: 3 << 38]))) == 1
    many = LazyTensor(Full(0.0), (), (1 << 42, 17), "F32").flatten()[::2]
    first = list(islice(dense_pieces(many), 5))
    assert [piece.box for piece in first[:2]] == [(range(1), range(0, 18, 2)), (range(1, 2), range(1, 17, 2))]


@pytest.mark.parametrize(("dims", "step"), [((1 << 40, 2), 3), ((1 << 40, 16), 7), ((1 << 40, 3, 4), 7)])
def test_short_rows_do_not_become_a_piece_each(dims: tuple[int, ...], step: int) -> None:
    strided = LazyTensor(Full(0.0), (), dims, "F32").flatten()[::step]
    found = list(islice(dense_pieces(strided), 100))
    assert len(found) < 50
    assert sum(prod(box_dims(piece.box)) for piece in found) == strided.numel()


@pytest.mark.parametrize("width", [1, 2, 5, MAX_PHASES, MAX_PHASES + 1])
def test_a_strided_view_of_a_reshape_is_torchs(tmp_path: Path, width: int) -> None:
    tensor = torch.arange(3 * 1000 * width).view(1000, width, 3)
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    lazy = lazysd.open(tmp_path / "x.safetensors")["x"]
    for step in (2, 3, 4, 7, 15, 16, 30, 45, 1000):
        for start in (0, 1, 14, 77):
            assert torch.equal(lazy.flatten()[start::step].materialize(), tensor.flatten()[start::step])
            assert torch.equal(lazy.reshape(-1, 3)[start::step].materialize(), tensor.reshape(-1, 3)[start::step])

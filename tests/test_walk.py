"""Walks: each node once, inputs first, however deep; deep graphs pickle, print, plan and draw."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import lazysd
from lazysd.graph.compute import Cast
from lazysd.graph.node import MAX_PICKLED_DEPTH
from lazysd.graph.spec import flatten, rebuild
from lazysd.graph.walk import below, is_deeper, nodes, pieces_of
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
    found = [type(piece.node.op).__name__ for piece in below(pieces_of(node))]
    assert sorted(found) == ["Cast", "InMemory", "InMemory"]


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

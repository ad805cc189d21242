"""JSON of a graph: what comes back is the same graph, checked row by row, without a file; and nothing hostile."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import pkgutil
import random
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

import lazysd
from lazysd.errors import FormatError, LazysdError, MissingShardError, UnsupportedCheckpointError
from lazysd.graph.base import Op
from lazysd.graph.compute import AddMatmul, Agree, Cast
from lazysd.graph.leaves import FileRange, Full, InMemory
from lazysd.graph.node import Node
from lazysd.graph.ops import Concat, Permute, Reshape, Slice, Stack, Take
from lazysd.graph.spec import _ops, flatten, from_json, rebuild, to_json
from lazysd.stores.memory import MemoryFile
from lazysd.tensor.lazy import LazyTensor
from lazysd.testing.graphs import Drawn, lazy_tensors

DEEP = 5000


class Files:
    """Files in memory under names of their own."""

    def __init__(self) -> None:
        self.held: dict[str, MemoryFile] = {}

    def leaf(self, tensor: torch.Tensor, code: str) -> LazyTensor:
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        file = MemoryFile(b"\xee" * 8 + data, f"file {len(self.held)}")
        file.path = file.name
        self.held[file.path] = file
        return LazyTensor(FileRange(file, 8), (), tuple(tensor.shape), code)

    def over(self, node: Node) -> LazyTensor:
        """The same graph, its leaves in files."""
        rows: list[Any] = []
        for kind, op, inputs, dims, code in flatten(node):
            if isinstance(op, InMemory):
                op = self.leaf(op.values().reshape(dims), code).op
            elif isinstance(op, FileRange):
                op.file.path = f"file {len(self.held)}"  # a file of memory has no path that tells it from others
                self.held[op.file.path] = op.file  # type: ignore[assignment]
            rows.append((kind, op, inputs, dims, code))
        return rebuild(rows)  # type: ignore[return-value]

    def open(self, path: str) -> MemoryFile:
        if path not in self.held:
            raise MissingShardError(f"{path!r} is missing")
        return self.held[path]


def again(node: LazyTensor, files: Files) -> LazyTensor:
    """The node, by way of text."""
    return from_json(json.loads(json.dumps(to_json({"x": node}))), LazyTensor, files.open)["x"]


def shown(node: Node) -> list[Any]:
    return [(type(op), repr(op), inputs, dims, code) for _, op, inputs, dims, code in flatten(node)]


@settings(deadline=None)
@given(lazy_tensors())
def test_any_graph_comes_back_the_same(drawn: Drawn) -> None:
    files = Files()
    node = files.over(drawn.node)
    back = again(node, files)
    assert shown(back) == shown(node)
    assert torch.equal(bits(back.materialize()), bits(drawn.expected))


def test_nothing_of_a_stack_comes_back() -> None:
    files = Files()
    stacked = lazysd.stack([files.leaf(torch.arange(3.0), "F32") for _ in range(2)])
    for node in (stacked[:0], stacked[2:], stacked.reshape(2, 1, 3)[:, :0]):
        assert shown(again(node, files)) == shown(node)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1)]).view(torch.uint8)  # dense in memory, also where there is nothing in it


def samples(files: Files) -> dict[str, LazyTensor]:
    """A node of each op of the graph's room."""
    a = files.leaf(torch.arange(24.0).reshape(2, 12), "F32")
    b, c = files.leaf(torch.ones(2, 3), "F32"), files.leaf(torch.ones(3, 12), "F32")
    made = {
        "stack": lazysd.stack((a, a)),
        "concat": lazysd.concat((a, a), 1),
        "slice": a[1, 2:11:3],
        "take": a[:, [3, 1, 1]],
        "permute": a.permute(1, 0),
        "reshape": a.reshape(4, 6),
        "cast": a.to(torch.bfloat16),
        "full": LazyTensor(Full(0.1), (), (10, 3), "F64"),
        "nan": LazyTensor(Full(float("nan")), (), (), "F32"),
        "matmul": LazyTensor(AddMatmul(1 / 3), (a, b, c), a.dims, "F32"),
        "agree": LazyTensor(Agree(("p", "q")), (a, a), a.dims, "F32"),
    }
    kinds = {type(op) for one in made.values() for _, op, *_ in flatten(one)}
    assert {FileRange, Full, Stack, Concat, Slice, Take, Permute, Reshape, Cast, AddMatmul, Agree} == kinds
    return made


def test_every_op_comes_back() -> None:
    files = Files()
    for name, node in samples(files).items():
        assert shown(again(node, files)) == shown(node), name


def test_schemes_and_conversions_are_data_too(golden: Path) -> None:
    """A whole conversion, without its files: it plans to the same shapes, and says what it lacks when it is read."""
    out = lazysd.open(golden / "qwen3_moe_tiny").convert("nemo").map(lambda t: t.to(torch.float32))
    text = json.dumps(to_json(out))
    back = lazysd.Checkpoint(from_json(json.loads(text), LazyTensor))
    assert {key: (node.dims, node.code) for key, node in back.items()} == {
        key: (node.dims, node.code) for key, node in out.items()
    }
    assert back.plan().write_nbytes == out.plan().write_nbytes
    with pytest.raises(UnsupportedCheckpointError, match="was not opened"):
        next(iter(back.values())).materialize()


def test_tensors_share_what_they_shared_and_depth_does_not_matter() -> None:
    files = Files()
    node = base = files.leaf(torch.arange(6.0), "F32")
    for number in range(DEEP):
        code = ("F64", "F32")[number % 2]
        node = LazyTensor(Cast(code), (node,), node.dims, code)
    made = from_json(json.loads(json.dumps(to_json({"a": node, "b": base}))), LazyTensor, files.open)
    assert len(to_json(made)["nodes"]) == DEEP + 1
    assert flatten(made["a"])[0][1] is made["b"].op


def test_what_is_of_this_process_alone_is_refused() -> None:
    held = lazysd.from_torch(torch.ones(2))
    for node in (held, held.double(), lazysd.stack((held, held)), lazysd.cached(held.double())):
        with pytest.raises(UnsupportedCheckpointError, match="cannot be written as JSON"):
            to_json({"x": node})


def row(spec: Any, op: str) -> Any:
    return next(row for row in spec["nodes"] if row["op"] == op)


CHANGES: dict[str, tuple[Any, str]] = {
    "no object": (lambda s: [], "expected an object"),
    "version": (lambda s: {**s, "version": 2}, "expected version 1, found 2"),
    "field": (lambda s: {**s, "x": 1}, "expected the fields version"),
    "no list": (lambda s: {**s, "nodes": {}}, "expected nodes to be a list"),
    "paths": (lambda s: {**s, "files": [1]}, "expected files to be paths"),
    "later input": (lambda s: row(s, "Permute").update(inputs=[10**6]), "places of nodes before this one"),
    "itself": (lambda s: row(s, "Cast").update(inputs=[s["nodes"].index(row(s, "Cast"))]), "places of nodes before"),
    "true": (lambda s: row(s, "Cast").update(inputs=[True]), "places of nodes before"),
    "unknown op": (lambda s: row(s, "Cast").update(op="Sharded"), "expected the name of an op, found 'Sharded'"),
    "dunder": (lambda s: row(s, "Cast").update(op="__class__"), "expected the name of an op"),
    "no text": (lambda s: row(s, "Cast").update(op=["Cast"]), "expected the name of an op"),
    "more fields": (lambda s: row(s, "Cast")["with"].update(x=1), "expected the fields of Cast"),
    "dtype": (lambda s: row(s, "Cast")["with"].update(code="F31"), "F31"),
    "stated dtype": (lambda s: row(s, "Cast").update(dtype="F64"), r"Cast gives BF16\[2, 12\], stated is F64"),
    "stated shape": (lambda s: row(s, "Stack").update(dims=[2, 2, 13]), "Stack gives"),
    "negative shape": (lambda s: row(s, "FileRange").update(dims=[-1]), "expected numbers"),
    "huge shape": (lambda s: row(s, "FileRange").update(dims=[2**40, 2**40]), r"fewer than 2\*\*63 bytes"),
    "empty and huge": (lambda s: row(s, "FileRange").update(dims=[0, 2**40, 2**40]), r"fewer than 2\*\*63 bytes"),
    "beyond the file": (lambda s: row(s, "FileRange")["with"].update(offset=2**62), "expected 104 bytes in"),
    "before the file": (lambda s: row(s, "FileRange")["with"].update(offset=-1), "expected numbers"),
    "no such file": (lambda s: row(s, "FileRange")["with"].update(file=99), "expected the number of a file"),
    "leaf with inputs": (
        lambda s: s["nodes"][1].update(inputs=[0]) or s["nodes"][1].update(op="Full"),
        "fields of Full",
    ),
    "box": (lambda s: row(s, "Slice")["with"].update(box=[[0, 3, 1], [0, 1, 1]]), "the box .* leaves"),
    "box of one axis": (lambda s: row(s, "Slice")["with"].update(box=[[0, 1, 1]]), "the box .* leaves"),
    "step": (lambda s: row(s, "Slice")["with"].update(box=[[0, 1, 0], [0, 1, 1]]), r"expected \[start, stop, step\]"),
    "drop": (lambda s: row(s, "Slice")["with"].update(drop=[7]), "cannot be dropped"),
    "drop twice": (lambda s: row(s, "Slice")["with"].update(drop=[0, 0]), "cannot be dropped"),
    "take": (lambda s: row(s, "Take")["with"].update(indices=[99]), "an index leaves axis"),
    "take from an axis": (lambda s: row(s, "Take")["with"].update(dim=-1), "out of range"),
    "permute": (lambda s: row(s, "Permute")["with"].update(dims=[0, 0]), "does not name each"),
    "reshape": (lambda s: row(s, "Reshape")["with"].update(shape=[-4, -6]), "expected numbers"),
    "stack": (lambda s: row(s, "Stack")["with"].update(lead=[3]), "needs 3 tensors"),
    "matmul": (lambda s: row(s, "AddMatmul").update(inputs=[0]), "node "),
    "float": (lambda s: row(s, "AddMatmul")["with"].update(scale=0.5), "as float.hex"),
    "float that overflows": (lambda s: row(s, "AddMatmul")["with"].update(scale="0x1p99999"), "node "),
    "tensor": (lambda s: s["tensors"].update(cast=10**6), "expected the place of a node"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_graph_is_refused(name: str) -> None:
    change, message = CHANGES[name]
    files = Files()
    spec = to_json(samples(files))
    changed = change(spec)
    with pytest.raises(FormatError, match=message) as caught:
        from_json(spec if changed is None else changed, LazyTensor, files.open)
    assert str(caught.value).startswith("cannot read this graph: ")
    assert len(str(caught.value)) < 600


def test_random_damage_raises_only_our_errors() -> None:
    """What passes is a graph of sound shapes: it can be planned."""
    files = Files()
    whole, rng, passed = to_json(samples(files)), random.Random(3), 0
    values = (None, True, -1, 0, 1, 2, 3, 9, 10, 12, 13, 2**31, 2**62, 2**63, 10**30, 0.5)
    values = (*values, "", "F32", "F4", "Full", [], [0], {})
    for _ in range(2000):
        spec = copy.deepcopy(whole)
        place: Any = spec
        while True:
            inside = list(place) if isinstance(place, dict) else list(range(len(place)))
            at = rng.choice(inside)
            if not isinstance(place[at], (dict, list)) or not place[at] or rng.random() < 0.1:
                break
            place = place[at]
        place[at] = rng.choice(values)
        try:
            made = from_json(spec, LazyTensor, files.open)
        except LazysdError:
            continue
        passed += 1
        for node in made.values():
            assert node.dims == tuple(int(size) for size in node.dims)
            node.reads()
    assert passed > 20


def test_every_op_of_every_room_is_data() -> None:
    """An op that cannot be written is one of these, for a reason."""
    for found in pkgutil.walk_packages(lazysd.__path__, "lazysd."):
        if found.name.split(".")[1] in ("graph", "quant", "peft", "tensor"):
            importlib.import_module(found.name)
    known, todo = _ops(), [Op]
    names = set()
    while todo:
        todo += (kinds := todo.pop().__subclasses__())
        names |= {kind.__name__ for kind in kinds if not inspect.isabstract(kind) and is_dataclass(kind)}
    assert {name for name in names if not name.startswith("_")} - known.keys() == {"InMemory", "Sharded", "Cached"}
    assert {"Dequantize", "Unpack", "DecodeNibbles", "AddMatmulNormed"} <= known.keys()

"""Lazy tensors inside torch code: what stays lazy, what reads, what is refused. The oracle is eager torch."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.errors import ReadOnlyError
from lazysd.move import materialize as engine
from lazysd.move import workers
from lazysd.stores.base import File, Parts
from lazysd.tensor.lazy import LazyTensor

# Multiples of 1/4: sums of their products are exact, so that the order in which torch adds them up does not matter.
A = torch.arange(24.0).reshape(4, 6) / 4
B = torch.arange(24).reshape(4, 6).to(torch.bfloat16)


@pytest.fixture
def ckpt(tmp_path: Path) -> Iterator[lazysd.Checkpoint]:
    save_file({"a": A, "b": B, "s": torch.tensor(2.5), "i": torch.tensor([3, 0])}, tmp_path / "m.safetensors")
    with lazysd.open(tmp_path / "m.safetensors", io="pread") as opened:
        yield opened


@pytest.fixture
def num_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the size of each read."""
    sizes: list[int] = []
    read = File.read

    def counted(self: File, parts: Parts) -> None:
        for buffer, _ in parts:
            sizes.append(len(buffer))
        read(self, parts)

    monkeypatch.setattr(File, "read", counted)
    return sizes


STRUCTURAL: dict[str, Callable[[Any], Any]] = {
    "stack": lambda x: torch.stack([x, x], dim=1),
    "stack of both": lambda x: torch.stack([x, torch.ones(4, 6)]),
    "cat": lambda x: torch.cat((x, x), dim=-1),
    "cat promotes": lambda x: torch.cat([x, torch.ones(2, 6, dtype=torch.float64)]),
    "cat with empty": lambda x: torch.cat([torch.empty(0), x]),
    "cat axis": lambda x: torch.cat(tensors=[x, x], axis=1),
    "concatenate": lambda x: torch.concatenate([x, x]),
    "split": lambda x: torch.split(x, 3, dim=1),
    "split sections": lambda x: torch.split(x, [1, 3]),
    "Tensor.split": lambda x: torch.Tensor.split(x, split_size=3, dim=1),
    "chunk": lambda x: torch.chunk(x, 4, dim=1),
    "transpose": lambda x: torch.transpose(x, 0, 1),
    "swapaxes": lambda x: torch.swapaxes(x, axis0=0, axis1=1),
    "movedim": lambda x: torch.movedim(x[None], (0, 1), (2, 0)),
    "permute": lambda x: torch.permute(x, (1, 0)),
    "permute dims": lambda x: torch.permute(input=x, dims=(1, 0)),
    ".permute dims": lambda x: x.permute(dims=(1, 0)),
    "reshape": lambda x: torch.reshape(x, (3, -1)),
    "unsqueeze": lambda x: torch.unsqueeze(x, dim=1),
    "squeeze": lambda x: torch.squeeze(x[:1]),
    "squeeze dims": lambda x: torch.squeeze(x[:1][:, None], dim=(0, 1)),
    "flatten": torch.flatten,
    "unflatten": lambda x: torch.unflatten(x, 1, (2, 3)),
    "unbind": lambda x: torch.unbind(x, dim=1),
    "select": lambda x: torch.select(x, 1, index=2),
    "narrow": lambda x: torch.narrow(x, 0, 1, 2),
    "t": torch.t,
    ".T": lambda x: x.T,
    ".mT": lambda x: x.mT,
    ".view": lambda x: x.view(2, 12),
    ".data": lambda x: x.data,
    ".to": lambda x: x.to(torch.float16),
    ".detach": lambda x: x.detach(),
    "clone": torch.clone,
    "iteration": lambda x: list(x),
    "index": lambda x: x[1:3, ::2],
}


@pytest.mark.parametrize("name", STRUCTURAL)
def test_structural_functions_stay_lazy(ckpt: lazysd.Checkpoint, num_reads: list[int], name: str) -> None:
    function = STRUCTURAL[name]
    made, wanted = function(ckpt["a"]), function(A)
    made, wanted = (x if isinstance(x, (list, tuple)) else [x] for x in (made, wanted))
    assert all(isinstance(node, LazyTensor) for node in made)
    assert num_reads == []
    for node, tensor in zip(made, wanted, strict=True):
        assert (node.shape, node.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(node.materialize(), tensor)


READING: dict[str, Callable[[Any], Any]] = {
    "sum": torch.sum,
    ".sum": lambda x: x.sum(dim=1),
    "matmul": lambda x: torch.matmul(x, x.T),
    "linear": lambda x: torch.nn.functional.linear(torch.ones(2, 6), x),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "einsum list": lambda x: torch.einsum("ij,kj->ik", [x, A]),
    "where": lambda x: torch.where(A > 1, x, torch.zeros(())),
    "view dtype": lambda x: x.view(torch.int32),
    "isfinite": lambda x: x.isfinite().all(),
    "max pair": lambda x: x.max(dim=0).values,
    "index by lazy": lambda x: torch.arange(30.0)[x.long()],
    "setitem": lambda x: torch.zeros(4, 12).__setitem__((slice(None), slice(3, 9)), x),
    "out": lambda x: torch.add(x, 1, out=torch.empty(4, 6)),
    "asarray": torch.asarray,
    "as_tensor": torch.as_tensor,
    "tensor": lambda x: torch.tensor(x if isinstance(x, LazyTensor) else x.tolist()),
    "from_dlpack": torch.from_dlpack,
    ".tolist": lambda x: torch.tensor(x.tolist()),
    "abs": abs,
    "expand": lambda x: x[:1].expand(3, 6),
    "tensor_split": lambda x: torch.tensor_split(x, 3)[1],
    "tensor on the left": lambda x: A + x,
    "number on the left": lambda x: 2 - x,
}


@pytest.mark.parametrize("name", READING)
def test_everything_else_reads(ckpt: lazysd.Checkpoint, num_reads: list[int], name: str) -> None:
    made, wanted = READING[name](ckpt["a"]), READING[name](A)
    assert sum(num_reads) in (A.nbytes, 2 * A.nbytes, A[:1].nbytes)
    assert isinstance(made, LazyTensor) is False
    assert made is wanted is None or torch.equal(torch.as_tensor(made), torch.as_tensor(wanted))


BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lt", "le", "gt", "ge", "eq", "ne"]


@pytest.mark.parametrize("name", BINARY)
def test_binary_operators(ckpt: lazysd.Checkpoint, name: str) -> None:
    function = getattr(operator, name)
    other = A.T.contiguous() if name == "matmul" else A.flip(0) + 1
    for made in (function(ckpt["a"], other), function(ckpt["a"], lazysd.from_torch(other))):
        assert type(made) is torch.Tensor
        assert torch.equal(made, function(A, other))
    torch.testing.assert_close(function(other, ckpt["a"]), function(other, A), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["and_", "or_", "xor", "lshift", "rshift"])
def test_integer_operators(ckpt: lazysd.Checkpoint, name: str) -> None:
    function, other, eager = getattr(operator, name), torch.tensor([1, 2]), torch.tensor([3, 0])
    assert torch.equal(function(ckpt["i"], other), function(eager, other))
    assert torch.equal(function(other, ckpt["i"]), function(other, eager))
    assert torch.equal(~ckpt["i"], ~eager)
    assert torch.equal(-ckpt["i"], -eager)


def test_reflected_numbers(ckpt: lazysd.Checkpoint) -> None:
    for function in (operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod):
        assert torch.equal(function(3, ckpt["a"] + 1), function(3, A + 1))
    assert torch.equal(2 ** ckpt["a"], 2**A)


def test_scalars(ckpt: lazysd.Checkpoint) -> None:
    assert (float(ckpt["s"]), int(ckpt["s"]), bool(ckpt["s"]), complex(ckpt["s"])) == (2.5, 2, True, 2.5)
    assert f"{ckpt['s']:.2f}" == "2.50"
    assert operator.index(ckpt["i"][0]) == 3
    assert [10, 11, 12, 13][ckpt["i"][0]] == 13
    assert 3 in ckpt["i"]
    assert 7 not in ckpt["i"]
    with pytest.raises(RuntimeError, match="more than one value"):
        bool(ckpt["a"])
    with pytest.raises(TypeError, match="0-d"):
        len(ckpt["s"])
    with pytest.raises(TypeError, match="0-d"):
        iter(ckpt["s"])


WRITING: dict[str, Callable[[Any], Any]] = {
    "setitem": lambda x: x.__setitem__(0, 1.0),
    ".add_": lambda x: x.add_(1),
    ".zero_": lambda x: x.zero_(),
    ".copy_": lambda x: x.copy_(A),
    ".set_": lambda x: x.set_(A),
    "iadd": lambda x: operator.iadd(x, 1),
    "imatmul": lambda x: operator.imatmul(x, A),
    "out": lambda x: torch.add(A, A, out=x),
    "out pair": lambda x: torch.max(A, 0, out=(x, x)),
    "relu_": torch.relu_,
    "relu inplace": lambda x: torch.nn.functional.relu(x, inplace=True),
    "init": torch.nn.init.zeros_,
    "foreach": lambda x: torch._foreach_add_([x], 1),
    "data_ptr": lambda x: x.data_ptr(),
    "untyped_storage": lambda x: x.untyped_storage(),
    "requires_grad_": lambda x: x.requires_grad_(),
    "Parameter": torch.nn.Parameter,
    "backward": lambda x: x.backward(),
}


@pytest.mark.parametrize("name", WRITING)
def test_writing_is_refused(ckpt: lazysd.Checkpoint, num_reads: list[int], name: str) -> None:
    with pytest.raises(ReadOnlyError, match=r"materialize\(\)"):
        WRITING[name](ckpt["a"])
    assert num_reads == []
    assert torch.equal(ckpt["a"].materialize(), A)


def test_shape_questions_read_nothing(ckpt: lazysd.Checkpoint, num_reads: list[int]) -> None:
    for x, y in ((ckpt["a"], A), (ckpt["b"], B)):
        assert (x.device, x.layout, x.requires_grad, x.is_leaf) == (y.device, y.layout, False, True)
        assert (x.is_floating_point(), x.is_complex(), x.stride(), x.numel()) == (True, False, y.stride(), y.numel())
        assert (x.stride(0), x.size(), x.size(-1), x.dim(), x.element_size()) == (6, y.shape, 6, 2, y.element_size())
        assert x.is_contiguous()
        assert torch.is_floating_point(x)
        assert torch.numel(x) == 24
        assert torch.result_type(x, 1.0) == y.dtype
        for made in (torch.zeros_like(x), x.new_zeros(4, 6)):
            assert torch.equal(made, torch.zeros_like(y))
            assert (made.dtype, made.device) == (y.dtype, y.device)
        assert torch.zeros_like(x, dtype=torch.int8).dtype == torch.int8
        assert torch.empty_like(x, device="meta").is_meta
    assert num_reads == []


def test_protocols_read_nothing(ckpt: lazysd.Checkpoint, num_reads: list[int]) -> None:
    x = ckpt["a"]
    for name in ("sum", "real", "grad", "_repr_png_", "_ipython_display_", "__cuda_array_interface__", "nope", "data"):
        hasattr(x, name)
    assert copy.copy(x) is x
    assert copy.deepcopy({"k": x})["k"] is x
    assert {x: 1}[x] == 1
    assert (x == None, x != None, x == "a") == (False, True, False)  # noqa: E711
    assert repr(x) == f"{x}" == str(x)
    back = pickle.loads(pickle.dumps(x.T[1:3]))
    assert num_reads == []
    assert torch.equal(back.materialize(), A.T[1:3])


def test_unknown_attributes(ckpt: lazysd.Checkpoint) -> None:
    with pytest.raises(AttributeError, match="'smu'"):
        ckpt["a"].smu()


def test_pickle_holds_no_data(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100_000)}, tmp_path / "m.safetensors")
    assert len(pickle.dumps(lazysd.open(tmp_path / "m.safetensors")["a"][5:])) < 2000


def test_equality(ckpt: lazysd.Checkpoint, num_reads: list[int]) -> None:
    assert torch.equal(ckpt["a"], A)
    assert torch.equal(A, ckpt["a"])
    assert not torch.equal(ckpt["a"], A + 1)
    torch.testing.assert_close(ckpt["a"], lazysd.from_torch(A))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ckpt["a"], lazysd.from_torch(A + 1))
    num_reads.clear()
    assert not torch.equal(ckpt["a"], A.T)  # shapes say it already
    assert num_reads == []


def test_numpy(ckpt: lazysd.Checkpoint) -> None:
    assert np.array_equal(np.asarray(ckpt["a"]), A.numpy())
    assert np.asarray(ckpt["a"], dtype=np.float16).dtype == np.float16
    assert np.array_equal(np.asarray(ckpt["b"], dtype=np.float64), B.double().numpy())
    assert np.array(ckpt["a"], copy=True).flags.owndata
    assert np.array_equal(ckpt["a"].numpy(), A.numpy())
    assert np.array_equal(np.from_dlpack(ckpt["a"]), A.numpy())
    assert isinstance(np.add(ckpt["a"], 1), np.ndarray)
    with pytest.raises(TypeError, match=r"numpy has no bf16.*to\(torch.float32\)"):
        np.asarray(ckpt["b"])
    with pytest.raises(ValueError, match="copy"):
        np.asarray(ckpt["a"], dtype=np.float16, copy=False)


def test_numpy_on_the_left(ckpt: lazysd.Checkpoint) -> None:
    made = (A.numpy() + 1) - ckpt["a"]  # torch itself refuses an array on the left
    assert type(made) is torch.Tensor
    assert torch.equal(made, (A + 1) - A)


def test_bf16_through_torch(ckpt: lazysd.Checkpoint) -> None:
    assert torch.equal(torch.asarray(ckpt["b"]), B)
    assert torch.equal(torch.from_dlpack(ckpt["b"]), B)
    assert torch.equal(torch.asarray(ckpt["b"], dtype=torch.float32), B.float())


def test_copy_fills_in_place(ckpt: lazysd.Checkpoint) -> None:
    wide = torch.full((4, 12), -1.0)
    wide[:, 3:9] = ckpt["a"]
    assert torch.equal(wide[:, 3:9], A)
    assert wide[:, [0, 1, 2, 9, 10, 11]].eq(-1).all()
    target = torch.empty(6, 4, dtype=torch.float64)
    assert target.copy_(ckpt["a"].T) is target
    assert torch.equal(target, A.T.double())
    assert torch.equal(torch.empty(3, 6).copy_(ckpt["a"][0]), A[0].expand(3, 6))  # broadcast


def test_copy_onto_its_own_source() -> None:
    tensor = A.clone()[:, :4].contiguous()
    wanted = tensor.T.clone()
    tensor.copy_(lazysd.from_torch(tensor).T)
    assert torch.equal(tensor, wanted)
    tensor[1:] = lazysd.from_torch(tensor)[:-1]
    assert torch.equal(tensor[1:], wanted[:-1])


def test_assigning_broadcasts_as_torch_does(ckpt: lazysd.Checkpoint) -> None:
    for value, eager in ((ckpt["a"][:1], A[:1]), (ckpt["a"][:1, :1], A[:1, :1]), (ckpt["s"], torch.tensor(2.5))):
        made, wanted = torch.zeros(3, 6), torch.zeros(3, 6)
        made[1], wanted[1] = value, eager  # torch drops leading axes of length 1 here, copy_ does not
        assert torch.equal(made, wanted)
    with pytest.raises(RuntimeError, match="must match"):
        torch.zeros(3, 6)[1:] = ckpt["a"]


def test_filling_counts_as_an_in_place_edit(ckpt: lazysd.Checkpoint) -> None:
    weight = torch.ones(4, 6, requires_grad=True)
    loss = (weight * weight).sum()
    ckpt["a"].materialize(out=weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    view = torch.ones(8, 6)
    saved = (view[2:6] * torch.ones(4, 6, requires_grad=True)).sum()
    with torch.no_grad():
        view[2:6] = ckpt["a"]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_inference_mode(ckpt: lazysd.Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where several threads fill one tensor: each thread of torch has a mode of its own."""
    for nbytes in (1 << 30, 16):
        monkeypatch.setattr(engine, "PARALLEL_MIN_NBYTES", nbytes)
        monkeypatch.setattr(engine, "TILE_NBYTES", nbytes)
        monkeypatch.setattr(workers, "default_workers", lambda: 2)
        for make in (lambda x: x.to(torch.float64), lambda x: x.T, lambda x: x.T.to(torch.half)):
            with torch.inference_mode():
                read = make(ckpt["a"]).materialize()
                out = torch.empty_like(read)
                make(ckpt["a"]).materialize(out=out)
            assert read.is_inference()
            assert torch.equal(read, make(A))
            assert torch.equal(out, make(A))


def test_a_complex_tensor_is_not_conjugated_in_silence(tmp_path: Path) -> None:
    z = torch.tensor([[1 + 2j, 3j]])
    save_file({"z": z}, tmp_path / "z.safetensors")
    lazy = lazysd.open(tmp_path / "z.safetensors")["z"]
    for name in ("H", "mH"):
        with pytest.raises(AttributeError, match=rf"conjugated.*materialize\(\)\.{name}"):
            getattr(lazy, name)
        assert torch.equal(getattr(lazysd.from_torch(A), name).materialize(), getattr(A, name))
    assert torch.equal(lazy.T.materialize(), z.T)


def test_gradients_flow_through_reading(ckpt: lazysd.Checkpoint) -> None:
    weight = torch.ones(4, 6, requires_grad=True)
    (weight * ckpt["a"]).sum().backward()
    assert torch.equal(weight.grad, A)
    stacked = torch.stack([weight, ckpt["a"]])
    assert type(stacked) is torch.Tensor
    assert stacked.requires_grad
    with pytest.raises(RuntimeError, match="leaf Variable"):
        weight.copy_(ckpt["a"])
    target = weight * 1
    target.copy_(ckpt["a"])  # recorded, as in torch: the gradient no longer reaches weight
    assert target.grad_fn is not None

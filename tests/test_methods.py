"""LazyTensor's methods are real ones: listed, documented, typed, in torch's signatures."""

from __future__ import annotations

import inspect
import pickle
import pydoc
from typing import Any

import pytest
import torch

import lazysd
from lazysd.tensor.casting import Casting
from lazysd.tensor.lazy import LazyTensor
from lazysd.tensor.parting import Parting
from lazysd.tensor.reading import Reading
from lazysd.tensor.shaping import Shaping
from lazysd.tensor.torch_functions import STRUCTURAL

MIXINS = (Shaping, Parting, Casting, Reading)
PUBLIC = sorted({name for mixin in MIXINS for name in vars(mixin) if not name.startswith("_")})
METHODS = [name for name in PUBLIC if inspect.isfunction(inspect.getattr_static(LazyTensor, name))]


def test_every_structural_function_is_a_method() -> None:
    assert set(METHODS) >= STRUCTURAL - {"numel"}
    lazy = lazysd.from_torch(torch.zeros(2, 3))
    assert set(dir(lazy)) >= {*PUBLIC, "numel", "nbytes", "ndim"}
    for name in STRUCTURAL:
        assert callable(getattr(torch.Tensor, name)), "a name that torch has too"


@pytest.mark.parametrize("name", [n for n in PUBLIC if not isinstance(getattr(LazyTensor, n), (bool, type(None)))])
def test_documented(name: str) -> None:
    member = inspect.getattr_static(LazyTensor, name)
    text = inspect.getdoc(member)
    assert text
    assert text.splitlines()[0].endswith(".")
    if not inspect.isfunction(member):
        return
    parameters = [p for p in inspect.signature(member).parameters.values() if p.name not in ("self", "named", "kwargs")]
    named = [p for p in parameters if p.name not in ("memory_format", "non_blocking", "dim", "axis0", "axis1")]
    if len(named) > 0 and name not in ("swapdims", "moveaxis"):
        assert "Args:" in text
        for parameter in named:
            assert parameter.name in text
    if "Args:" in text:
        assert text.index("Args:") < text.index("Returns:") < text.index("Raises:")


@pytest.mark.parametrize("name", METHODS)
def test_typed(name: str) -> None:
    signature = inspect.signature(inspect.getattr_static(LazyTensor, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.name == "self" or parameter.annotation is not inspect.Parameter.empty


@pytest.mark.parametrize("name", sorted(STRUCTURAL - {"view", "to"}))
def test_signatures_are_torchs(name: str) -> None:
    """Every parameter that torch documents, in its order: "transpose(dim0, dim1) -> Tensor"."""
    head = next(line for line in (getattr(torch.Tensor, name).__doc__ or "").splitlines() if line.strip())
    if "(" not in head or name in ("split", "narrow"):  # documented under other names than they take
        return
    listed = head[head.index("(") + 1 : head.index(")")].split(",")
    theirs = [part.split("=")[0].strip(" *") for part in listed if part.strip(" *")]
    ours = [p.name for p in inspect.signature(getattr(LazyTensor, name)).parameters.values() if p.name != "self"]
    assert [part for part in theirs if part] == [part for part in ours if part != "named"]


def test_help() -> None:
    lazy = lazysd.from_torch(torch.zeros(2, 3))
    assert "permute(*dims" in pydoc.plain(pydoc.render_doc(lazy.permute))
    assert "Put the axes into another order" in pydoc.plain(pydoc.render_doc(LazyTensor))
    assert lazy.sum.__name__ == "sum"
    assert lazy.sum.__doc__ == torch.Tensor.sum.__doc__


def test_numbers_of_other_libraries() -> None:
    import numpy as np

    lazy, eager = lazysd.from_torch(torch.arange(6).view(2, 3)), torch.arange(6).view(2, 3)
    for one in (np.int64(1), np.array(1), torch.tensor(1), lazysd.from_torch(torch.tensor(1))):
        assert torch.equal(lazy.select(one, one).materialize(), eager.select(1, 1))
        assert torch.equal(lazy.transpose(0, one).materialize(), eager.T)
        assert torch.equal(lazy.split(one, one)[2].materialize(), eager[:, 2:])


def test_arguments_are_named_in_errors() -> None:
    lazy = lazysd.from_torch(torch.zeros(2, 3))
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: lazy.permute(0, 0), ValueError, "once"),
        (lambda: lazy.permute(0, 2), IndexError, "axis 2 is out of range for 2 axes"),
        (lambda: lazy.permute(0, 10**30), ValueError, "100 bits"),
        (lambda: lazy.flatten(1, 0), RuntimeError, "start_dim 1 comes behind end_dim 0"),
        (lambda: lazy.movedim((0, 0), (0, 1)), RuntimeError, "named twice"),
        (lambda: lazy.movedim((0, 1), (1, 1)), RuntimeError, "named twice"),
        (lambda: lazy.movedim((0, 1), (1,)), RuntimeError, "2 axes to move and 1"),
        (lambda: lazy.select(0, 5), IndexError, "index 5 is out of bounds for axis 0 of size 2"),
        (lambda: lazy.narrow(1, 2, 2), IndexError, "narrow\\(2, 2\\) leaves axis 1 of size 3"),
        (lambda: lazy.split([1, 3], 1), ValueError, "add up to 4, axis 1 has 3"),
        (lambda: lazy.split([4, -1], 1), ValueError, "split sizes"),
        (lambda: lazy.chunk(0), ValueError, "positive number of chunks"),
        (lambda: lazy.to("float16"), RuntimeError, "device"),
        (lambda: lazy.to(dtype="float16"), TypeError, "torch.dtype, got str"),
        (lambda: lazy.to(torch.float16, alien=1), TypeError, "alien"),
        (lambda: lazy.reshape(1.5), TypeError, "shape has to be"),
        (lambda: lazy.reshape(()), ValueError, "cannot reshape"),
        (lambda: lazy.unflatten(0, (3, -1)), ValueError, "cannot unflatten axis 0 of size 2"),
        (lambda: lazy.squeeze((0, 0)), RuntimeError, "named twice"),
        (lambda: lazy.mT[0].mT, RuntimeError, "mT needs at least 2 axes"),
        (lambda: lazy[None].H, RuntimeError, "matrices"),
        (lambda: lazy.item(), RuntimeError, "one element, this one has 6"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


def test_edges_that_torch_has() -> None:
    empty, eager = lazysd.from_torch(torch.zeros(0, 3)), torch.zeros(0, 3)
    assert [part.shape for part in empty.chunk(4)] == [part.shape for part in eager.chunk(4)]
    assert [part.shape for part in empty.split(0)] == [part.shape for part in eager.split(0)]
    lazy, eager = lazysd.from_torch(torch.arange(6).view(3, 2)), torch.arange(6).view(3, 2)
    assert torch.equal(reversed(lazy), reversed(eager))
    scalar = lazysd.from_torch(torch.tensor(3))
    assert torch.equal(reversed(scalar), reversed(torch.tensor(3)))
    assert scalar.flatten().shape == (1,)
    assert scalar.transpose(0, -1) is scalar


def test_pickles_and_subclasses() -> None:
    lazy = lazysd.from_torch(torch.arange(6).view(2, 3)).T
    back = pickle.loads(pickle.dumps(lazy))
    assert type(back) is LazyTensor
    assert torch.equal(back.materialize(), lazy.materialize())

    class Marked(LazyTensor):
        __slots__ = ()

    leaf = lazysd.from_torch(torch.arange(6).view(2, 3))
    marked = Marked(leaf.op, (), leaf.dims, leaf.code)
    for made in (marked.T, marked[1:], *marked.split(2), marked.to(torch.float16), torch.stack([marked, marked])):
        assert type(made) is Marked


def test_the_package_lists_what_is_public() -> None:
    assert dir(lazysd) == sorted(lazysd.__all__)
    for name in dir(lazysd):
        assert getattr(lazysd, name) is not None

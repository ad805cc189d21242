"""What writes into its arguments is refused: by torch's schemas, by what they leave out, or when it has happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

import lazysd
from lazysd.errors import ReadOnlyError
from lazysd.tensor.writing import refuse_writes, written_by

X = torch.arange(12.0).reshape(4, 3)
MEAN, VAR = torch.zeros(3), torch.ones(3)
SOURCES = ("mmap", "pread", "memory")


@pytest.fixture
def stats(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """x, mean and var, lazy."""
    tensors = {"x": X, "mean": MEAN, "var": VAR}
    if request.param == "memory":
        return {key: lazysd.from_torch(tensor.clone()) for key, tensor in tensors.items()}
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "m.safetensors")
    return dict(lazysd.open(tmp_path / "m.safetensors", io=request.param))


STATISTICS: dict[str, Callable[[Any, Any], Any]] = {
    "batch_norm": lambda m, v: functional.batch_norm(X, m, v, training=True),
    "batch_norm by place": lambda m, v: functional.batch_norm(X, m, v, None, None, True),
    "batch_norm, mean only": lambda m, v: functional.batch_norm(X, m, torch.ones(3), training=True),
    "batch_norm, var only": lambda m, v: functional.batch_norm(X, running_mean=MEAN.clone(), running_var=v, training=1),
    "torch.batch_norm": lambda m, v: torch.batch_norm(X, None, None, m, v, True, 0.1, 1e-5, False),
    "native_batch_norm": lambda m, v: torch.native_batch_norm(X, None, None, m, v, True, 0.1, 1e-5),
    "instance_norm": lambda m, v: functional.instance_norm(torch.ones(2, 3, 5), m, v),
    "torch.instance_norm": lambda m, v: torch.instance_norm(X[None], None, None, m, v, True, 0.1, 1e-5, False),
}


@pytest.mark.parametrize("stats", ["mmap"], indirect=True)
@pytest.mark.parametrize("name", STATISTICS)
def test_running_statistics_are_not_lost(stats: dict[str, Any], name: str) -> None:
    with pytest.raises(ReadOnlyError, match="write into a lazy tensor"):
        STATISTICS[name](stats["mean"], stats["var"])
    assert torch.equal(stats["mean"].materialize(), MEAN)
    assert torch.equal(stats["var"].materialize(), VAR)


@pytest.mark.parametrize("stats", ["mmap"], indirect=True)
def test_statistics_that_are_only_read(stats: dict[str, Any]) -> None:
    wanted = functional.batch_norm(X, MEAN, VAR)
    assert torch.equal(functional.batch_norm(stats["x"], stats["mean"], stats["var"]), wanted)
    assert torch.equal(torch.batch_norm(X, None, None, stats["mean"], MEAN + 1, False, 0.1, 1e-5, False), wanted)
    mean = MEAN.clone()
    functional.batch_norm(stats["x"], mean, VAR.clone(), training=True)  # a lazy input: the statistics are the caller's
    assert mean.ne(0).all()


@pytest.mark.parametrize("stats", SOURCES, indirect=True)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_embeddings_do_not_renormalise(stats: dict[str, Any], mode: Any) -> None:
    index = torch.tensor([[1, 2]])
    for function in (functional.embedding, functional.embedding_bag):
        with mode(), pytest.raises(ReadOnlyError, match="embedding"):
            function(index, stats["x"], max_norm=1.0)
        assert torch.equal(function(index, stats["x"]), function(index, X))
    assert torch.equal(stats["x"].materialize(), X)


@pytest.mark.parametrize("stats", SOURCES, indirect=True)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_nobody_foresaw_is_undone(stats: dict[str, Any], mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that writes under an innocent name. The memory of a mapped file is shared: it is read anew."""
    monkeypatch.setattr("lazysd.tensor.torch_functions.refuse_writes", lambda *args: None)
    with mode(), pytest.raises(ReadOnlyError, match="write into a lazy tensor"):
        torch.nn.init.normal_(stats["x"])
    assert torch.equal(stats["x"].materialize(), X)


LISTS = {
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "remove",
    "reverse",
    "sort",
    "Delete",
    "_set_item",
}  # TorchScript's


def in_place_operators() -> list[tuple[str, int, str, str]]:
    """(name, position, argument, type) of every tensor argument that torch's schemas call written."""
    found = []
    for schema in torch._C._jit_get_all_schemas():
        room, _, name = schema.name.partition("::")
        for position, argument in enumerate(schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if room == "aten" and name not in LISTS and written and "Tensor" in str(argument.type):
                found.append((name, position, argument.name, str(argument.type)))
    return found


def test_every_argument_that_torch_writes_into() -> None:
    cases = in_place_operators()
    assert len(cases) > 500
    lazy = lazysd.from_torch(torch.ones(2))
    for name, position, argument, kind in cases:
        value = [lazy] if kind.startswith("List") else lazy
        with pytest.raises(ReadOnlyError):
            refuse_writes(None, name, (), {argument: value})
        if (position, argument) in written_by(name):
            with pytest.raises(ReadOnlyError):
                refuse_writes(None, f"{name}.overload", (*([None] * position), value), {})


@pytest.mark.parametrize(
    "name", ["add", "sort", "copy", "sum", "stack", "reverse", "index_put", "cat", "where", "split"]
)
def test_what_only_reads_is_not_refused(name: str) -> None:
    lazy = lazysd.from_torch(torch.ones(2))
    refuse_writes(None, name, (lazy, lazy, [lazy]), {"input": lazy})


@pytest.mark.parametrize("name", [n for n in dir(torch.Tensor) if n.endswith("_") and not n.startswith("_")])
def test_every_method_in_place(name: str) -> None:
    """torch's convention, whatever the arguments."""
    lazy = lazysd.from_torch(torch.ones(2))
    for args in ((), (1,), (torch.ones(2),)):
        with pytest.raises(ReadOnlyError):
            getattr(lazy, name)(*args)
        with pytest.raises((ReadOnlyError, TypeError)):
            getattr(torch.Tensor, name)(lazy, *args)
    assert lazy.materialize().tolist() == [1, 1]


def test_lazy_tensors_may_be_what_is_written() -> None:
    """The source of an in-place edit, not its target."""
    lazy, target = lazysd.from_torch(torch.full((2,), 2.0)), torch.ones(2)
    target.add_(lazy)
    target[torch.tensor([0])] = lazy[:1]
    torch._foreach_mul_([target], [lazy])
    assert target.tolist() == [4, 6]
    assert target.copy_(other=lazy) is target
    assert target.tolist() == [2, 2]

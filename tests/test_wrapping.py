"""Tensors in memory as leaves: the values at wrapping, or an error that says they are gone."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lazysd
from lazysd.errors import SourceChangedError, UnsupportedCheckpointError


def module() -> torch.nn.Linear:
    made = torch.nn.Linear(3, 2)
    made.register_buffer("steps", torch.arange(5))
    return made


MOVED: dict[str, Callable[[torch.nn.Module], Any]] = {
    "half": lambda m: m.half(),
    "double": lambda m: m.double(),
    "float": lambda m: m.float(),
    "bfloat16": lambda m: m.bfloat16(),
    "to meta": lambda m: m.to("meta"),
    "data": lambda m: setattr(m.weight, "data", torch.zeros(7)),
    "share_memory": lambda m: m.share_memory(),
    "a new parameter": lambda m: setattr(m, "weight", torch.nn.Parameter(torch.zeros(1))),
    "requires_grad": lambda m: m.weight.requires_grad_(False),
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("name", MOVED)
def test_values_at_wrapping_survive_what_gives_a_tensor_other_memory(name: str, swap: bool) -> None:
    made = module()
    weight, steps = made.weight.detach().clone(), made.steps.clone()
    lazy, buffer, column = (lazysd.from_torch(t) for t in (made.weight, made.steps, made.weight.detach()[:, 1]))
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        MOVED[name](made)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    for node, wanted in ((lazy, weight), (buffer, steps), (column, weight[:, 1]), (lazy.T, weight.T)):
        assert (node.shape, node.dtype) == (wanted.shape, wanted.dtype)
        assert torch.equal(node.materialize(), wanted)
    assert torch.equal(lazy.to(torch.float64).materialize(), weight.double())
    assert torch.equal(pickle.loads(pickle.dumps(lazy)).materialize(), weight)


def other_memory(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.set_(torch.zeros(4, 4))


EDITED: dict[str, Callable[[torch.Tensor], Any]] = {
    "add_": lambda t: t.detach().add_(1),
    "a view": lambda t: t.detach()[0].zero_(),
    "setitem": lambda t: t.detach().__setitem__((0, 0), 9.0),
    "init": torch.nn.init.ones_,
    "set_": other_memory,
    "out=": lambda t: torch.add(torch.ones(2, 3), 1, out=t.detach()),
    "resize larger": lambda t: t.detach().resize_(50, 50),
    "resize smaller": lambda t: t.detach().resize_(1),
    "no memory": lambda t: t.untyped_storage().resize_(0),
    "in inference mode": lambda t: torch.inference_mode()(lambda: t.detach().mul_(2))(),
    "filled by lazysd": lambda t: lazysd.from_torch(torch.ones(2, 3)).materialize(out=t),
    "load_state_dict": lambda t: torch.nn.ParameterDict({"a": t}).load_state_dict({"a": torch.zeros(2, 3)}),
}


@pytest.mark.parametrize("name", EDITED)
def test_edits_in_place_are_an_error(name: str, tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    lazy, part = lazysd.from_torch(weight), lazysd.from_torch(weight.T[1:])
    kept = lazysd.from_torch(weight.detach().clone())
    EDITED[name](weight)
    for read in (
        lambda: lazy.materialize(),
        lambda: lazy.T.to(torch.float64).materialize(),
        lambda: part.materialize(out=torch.empty(2, 2)),
        lambda: lazy + 1,
        lambda: lazysd.Checkpoint({"w": lazy}).save(tmp_path / "out"),
        lambda: dict(lazysd.Checkpoint({"w": lazy}).iter_tensors()),
        lambda: pickle.dumps(lazy),
    ):
        with pytest.raises(SourceChangedError, match=r"from_torch\(\).*wrap it again.*clone\(\)"):
            read()
    assert torch.equal(kept.materialize(), torch.arange(6.0).reshape(2, 3))
    if name not in ("no memory",):
        assert torch.equal(lazysd.from_torch(weight).materialize(), weight)


def test_tensors_whose_edits_nobody_counts_are_copied() -> None:
    with torch.inference_mode():
        buffer = torch.ones(3)
        lazy = lazysd.from_torch(buffer)
        mixed = lazysd.Checkpoint({}) | {"b": buffer}
        buffer.add_(1)
    assert lazy.materialize().tolist() == mixed["b"].materialize().tolist() == [1, 1, 1]


@pytest.mark.parametrize("join", [torch.stack, torch.cat])
def test_torch_functions_copy_plain_tensors_as_torch_does(join: Callable[..., Any]) -> None:
    """A buffer that the caller fills again and again: each result keeps what it was made of."""
    lazy, buffer, made, wanted = lazysd.from_torch(torch.zeros(2, 3)), torch.empty(2, 3), [], []
    for step in range(3):
        buffer.data.fill_(step)  # an edit that torch does not count
        made.append(join([lazy, buffer, buffer.T.reshape(2, 3)]))
        wanted.append(join([torch.zeros(2, 3), buffer, buffer.T.reshape(2, 3)]))
    for node, tensor in zip(made, wanted, strict=True):
        assert isinstance(node, lazysd.LazyTensor)
        assert torch.equal(node.materialize(), tensor)


def test_wrapping_shares_memory() -> None:
    tensor = torch.zeros(3)
    lazy = lazysd.from_torch(tensor)
    tensor.numpy()[0] = 5  # not counted by torch, and documented so: the memory is the tensor's own
    assert lazy.materialize().tolist() == [5, 0, 0]


def test_what_cannot_be_wrapped_is_refused() -> None:
    for value in (None, 3, 2.5, "a", [1.0], np.zeros(3), {"a": torch.zeros(1)}):
        with pytest.raises(TypeError, match=r"torch\.Tensor is needed"):
            lazysd.from_torch(value)
    with pytest.raises(TypeError, match="from_numpy"):
        lazysd.from_torch(np.zeros(3))
    for tensor in (torch.eye(2).to_sparse(), torch.ones(2, 2).to_mkldnn()):
        with pytest.raises(ValueError, match="only dense"):
            lazysd.from_torch(tensor)
    with pytest.raises(ValueError, match="no shape yet"):
        lazysd.from_torch(torch.nn.LazyLinear(3).weight)
    with pytest.raises(UnsupportedCheckpointError, match="complex128"):
        lazysd.from_torch(torch.zeros(2, dtype=torch.complex128))

"""Irregular layers in sentences."""

from __future__ import annotations

import tracemalloc

import torch

import lazysd
from lazysd.display.layers import MAX_SENTENCES, irregular_layers
from lazysd.tensor.lazy import LazyTensor

W = lazysd.from_torch(torch.zeros(2, 3))


def model(layers: int = 12, experts: int = 11) -> dict[str, LazyTensor]:
    keys = [
        f"model.layers.{n}.mlp.experts.{e}.{p}_proj.weight"
        for n in range(layers)
        for e in range(experts)
        for p in "gud"
    ]
    return dict.fromkeys([*keys, *(f"model.layers.{n}.norm.weight" for n in range(layers)), "lm_head.weight"], W)


def test_regular_layers_are_not_spoken_of() -> None:
    assert irregular_layers(model()) == []
    assert irregular_layers({}) == []


def test_a_missing_expert_is_named() -> None:
    tensors = {key: node for key, node in model().items() if ".7.mlp.experts.3." not in key}
    assert irregular_layers(tensors) == ["layer 7 lacks mlp.experts.3"]
    tensors = {key: node for key, node in model().items() if not (".10.mlp" in key and (".1." in key or ".9." in key))}
    assert irregular_layers(tensors) == ["layer 10 lacks mlp.experts.{1,9}"]


def test_one_missing_tensor_is_one_expert_too() -> None:
    tensors = model()
    del tensors["model.layers.2.norm.weight"]
    assert irregular_layers(tensors) == ["layer 2 lacks norm.weight"]


def test_dense_first_layers() -> None:
    tensors = {k: t for k, t in model().items() if not k.startswith(("model.layers.0.mlp", "model.layers.1.mlp"))}
    tensors |= {f"model.layers.{n}.mlp.up_proj.weight": W for n in (0, 1)}
    assert irregular_layers(tensors) == ["layers 0-1 lack mlp.experts.{0-10}, have mlp.up_proj.weight beside"]


def test_another_shape_and_a_missing_layer() -> None:
    tensors = model()
    tensors["model.layers.4.norm.weight"] = lazysd.from_torch(torch.zeros(9))
    tensors = {key: node for key, node in tensors.items() if ".layers.5." not in key}
    assert irregular_layers(tensors) == [
        "layer 4 has norm.weight of another dtype or shape",
        "model.layers has no layer 5",
    ]


def test_stacks_are_compared_apart_and_bounded() -> None:
    tensors = {"a." + key: node for key, node in model().items()} | {"b." + key: node for key, node in model(3).items()}
    assert irregular_layers(tensors) == []
    odd = {f"layers.{n}.{'y' * n}.w": W for n in range(40)} | {f"layers.{n}.w": W for n in range(40, 60)}
    said = irregular_layers(odd)
    assert len(said) == MAX_SENTENCES + 1
    assert said[-1].startswith("and ")


def test_a_hostile_number_costs_nothing() -> None:
    tensors = {"layers.0.w": W, "layers.999999999.w": W, "layers.9999999999999.w": W}
    tracemalloc.start()
    said = irregular_layers(tensors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said == ["layers has no layer 1-999999998"]
    assert peak < 1_000_000  # a set of a billion numbers would take gigabytes

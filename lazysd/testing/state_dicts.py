"""A strategy of small state dicts, derived from a family's table: whatever is registered can be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from hypothesis import strategies as st

from .. import layouts
from .graphs import tensor_of_bits

PREFIXES = ("model.", "", "model.language_model.", "language_model.", "base_model.model.model.")
DTYPES = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.int64,
    torch.float8_e4m3fn,
)
MAX_SIZES = {"e": 6}  # axes that live in key names; every other axis has at most MAX_SIZE
MAX_SIZE = 9


@st.composite
def checkpoints(
    draw: Any,
    family: str = "qwen3_moe",
    dtypes: Sequence[torch.dtype] = DTYPES,
    max_layers: int = 3,
    prefixes: Sequence[str] = PREFIXES,
) -> dict[str, torch.Tensor]:
    """State dicts of a model family as Hugging Face stores them (layout "hf"), small, with random bits.

    Every tensor that the family's rules speak of is there, in each layer, along with an embedding, a router and norms
    that no rule touches. Sizes, prefix, layers and dtype are drawn; bits are random, NaN payloads included.

    Args:
        family: a family with a layout "hf" (`lazysd.layouts.register` adds one).
        dtypes: to choose from; all tensors of a state dict have the same.
        max_layers: layers at most; they need not start at 0.
        prefixes: what the keys begin with.

    Returns:
        A strategy of dict[str, torch.Tensor].
    """
    layout = layouts.get("hf", family)
    dtype, prefix = draw(st.sampled_from(list(dtypes))), draw(st.sampled_from(list(prefixes)))
    first, count = draw(st.integers(0, 2)), draw(st.integers(1, max_layers))
    seed = draw(st.integers(0, 2**31))
    sizes: dict[str, int] = {}
    made: dict[str, torch.Tensor] = {}

    def size_of(axis: str) -> int:
        if axis not in sizes:
            sizes[axis] = draw(st.integers(1, MAX_SIZES.get(axis, MAX_SIZE)), label=f"size of axis {axis}")
        return sizes[axis]

    def add(key: str, dims: tuple[int, ...]) -> None:
        made[key] = tensor_of_bits(dtype, dims, seed + len(made))

    add(prefix + "embed_tokens.weight", (7, size_of("h")))
    for layer in range(first, first + count):
        for rule in layout.rules:
            template, side = rule.ends(forward=True)[:2]
            for axis in side.keys:
                if axis in template.words:
                    sizes[axis] = len(template.words[axis])
            dims = tuple(prod(size_of(axis) for axis in group) for group in side.groups)
            for index in product(*(range(size_of(axis)) for axis in side.keys)):
                fields = {axis: template.word(axis, at) for axis, at in zip(side.keys, index, strict=True)}
                fixed = dict.fromkeys(template.fields, "0") | {"prefix": prefix, "layer": str(layer)}
                add(template.format({**fixed, **fields}), dims)
        add(f"{prefix}layers.{layer}.mlp.gate.weight", (size_of("e"), size_of("h")))
        add(f"{prefix}layers.{layer}.input_layernorm.weight", (size_of("h"),))
    return made

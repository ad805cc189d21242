"""Strategies of small state dicts: of a family, from its table, with what stands beside the experts; or like a model's.

What breaks converters is drawn on purpose: ten and more experts and layers (text sorts 10 before 2), layers 1 and 10
side by side, 2I == H and I == H (a reshape then looks like a transposition), sizes of one, odd sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from hypothesis import strategies as st

from .. import layouts
from ..dtypes import from_torch
from ..layouts import Layout, Rule
from .layers import leave_out
from .sizes import DrawnSizes, Sizes, sums
from .values import StateDict, state_dict

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
EMBEDDING, ALWAYS = "embed_tokens.weight", "always"
MAX_LAYER = 12  # layers need not be neighbours, and have two digits now and then
Entries = dict[str, tuple[str, tuple[int, ...]]]


@st.composite
def state_dicts(
    draw: Any,
    family: str = "qwen3_moe",
    layout: str = "hf",
    *,
    dtypes: Sequence[torch.dtype] | Callable[[str], torch.dtype] = DTYPES,
    sizes: Sizes | None = None,
    tied: Sequence[tuple[str, str]] = (),
    max_layers: int = 3,
    prefixes: Sequence[str] = PREFIXES,
    scenery: bool = True,
    lora: bool = False,
) -> StateDict:
    """State dicts of a model family in a layout: every tensor that the layout's rules speak of, and scenery.

    A failing example shrinks to one layer, one expert, no scenery and elements 0, 1, 2, ..., and prints as code.

    >>> from hypothesis import find
    >>> from lazysd.testing import state_dicts
    >>> len(find(state_dicts(sizes={"e": 10}, max_layers=1, scenery=False), lambda state_dict: True))
    30

    Args:
        family: a family that lazysd knows (`lazysd.layouts.register` adds one).
        layout: the layout of the keys.
        dtypes: to choose from, one for the experts and one for what stands beside them; or a function from a key to its
            dtype.
        sizes: axis -> size, or (smallest, largest). Axes are those of the family's table: e experts, h hidden, i
            intermediate, r rank.
        tied: pairs of axes that have one size, e.g. ("h", "i").
        max_layers: layers at most, numbered anywhere from 0 to 12.
        prefixes: what the keys begin with.
        scenery: whether keys that no rule touches may stand beside: attention with biases, norms, routers, shared
            experts, embeddings.
        lora: draw the layout's LoRA tensors instead of its weights.

    Returns:
        A strategy of StateDict: a dict, with `sizes` and `config`.
    """
    return _drawn(draw, family, layout, dtypes, sizes, tied, max_layers, prefixes, scenery, lora)


@st.composite
def checkpoints(
    draw: Any,
    family: str = "qwen3_moe",
    dtypes: Sequence[torch.dtype] = DTYPES,
    max_layers: int = 3,
    prefixes: Sequence[str] = PREFIXES,
) -> StateDict:
    """State dicts of a family as Hugging Face stores them, of one dtype, an embedding, routers and norms always there.

    Args and Returns as `state_dicts(family, "hf")`.
    """
    return _drawn(draw, family, "hf", [draw(st.sampled_from(list(dtypes)))], None, (), max_layers, prefixes, ALWAYS)


@st.composite
def state_dicts_like(draw: Any, model: torch.nn.Module | Mapping[str, torch.Tensor]) -> StateDict:
    """State dicts with the keys, shapes and dtypes of a model or state dict, and random bits. Meta tensors will do.

    >>> import torch
    >>> from hypothesis import find
    >>> from lazysd.testing import state_dicts_like
    >>> with torch.device("meta"):
    ...     module = torch.nn.Linear(3, 2)
    >>> find(state_dicts_like(module), lambda state_dict: True)["bias"]
    tensor([6., 7.])

    Args:
        model: a module, or key -> tensor; values that are no tensors are left out. Data is never read.

    Returns:
        A strategy of StateDict.
    """
    source = model.state_dict() if isinstance(model, torch.nn.Module) else model
    entries = {
        key: (from_torch(value.dtype), tuple(value.shape))
        for key, value in source.items()
        if isinstance(value, torch.Tensor)
    }
    return state_dict(entries, draw(st.integers(0, 2**31)))


def _drawn(
    draw: Any,
    family: str,
    layout: str,
    dtypes: Sequence[torch.dtype] | Callable[[str], torch.dtype],
    sizes: Sizes | None,
    tied: Sequence[tuple[str, str]],
    max_layers: int,
    prefixes: Sequence[str],
    scenery: bool | str,
    lora: bool = False,
) -> StateDict:
    """What state_dicts() and checkpoints() draw; scenery ALWAYS leaves embedding, routers and norms never out."""
    table = layouts.get(layout, family)
    prefix, seed = draw(st.sampled_from(list(prefixes))), draw(st.integers(0, 2**31))
    numbers = draw(st.lists(st.integers(0, MAX_LAYER), min_size=1, max_size=max_layers, unique=True))
    if max_layers > 1 and draw(st.integers(0, 3)) == 3:
        numbers = [1, 10]  # one a prefix of the other
    said = {axis: int(names[0]) for axis, names in table.sizes.items() if names and names[0].isdecimal()}
    drawn = DrawnSizes(draw, said | dict(sizes or {}), (*_same_names(table), *tied))
    for axis, base, _ in sums(table):
        drawn.known[axis] = drawn[base] + draw(st.integers(0, 2))
    code_of = _dtype_rule(draw, dtypes)
    entries: Entries = {}
    if scenery is True and draw(st.integers(0, 5), label="nothing beside the experts") == 0:
        scenery = False
    renaming = list(_of_other_keys(table, layouts.all_layouts(family)))
    renaming.sort(key=lambda rule: "..." in rule.axes)  # one that says the axes of a key decides its shape
    elsewhere = [layouts.parse_key(rule.to) for rule in renaming]  # names that only other layouts have
    beside = list(_scenery(prefix, numbers, drawn, draw, scenery == ALWAYS)) if scenery else []
    beside = [item for item in beside if all(template.match(item[0]) is None for template in elsewhere)]
    if table.beside and not any(".experts." in rule.to for rule in table.rules):  # without experts there is no router
        beside = [item for item in beside if ".mlp." not in item[0]]
    if beside and beside[0][0] == prefix + EMBEDDING:  # where models have it
        entries[beside[0][0]] = (code_of("scenery", beside[0][0]), beside[0][1])
    for layer in numbers:
        for key, dims in _keys_of(table, lora, prefix, layer, drawn):
            entries[key] = (code_of("expert", key), dims)
    for key, dims in beside:
        entries.setdefault(key, (code_of("scenery", key), dims))
    wanted = layout == "hf" and scenery is True and not lora
    if wanted and draw(st.integers(0, 2), label="other keys that layouts rename") < 2:
        for layer in numbers:
            for rule in renaming:
                if rule.where or rule.afters:  # neither layers without experts are drawn, nor such after the last
                    continue
                for key, dims in _tensors(rule, True, prefix, layer, drawn):
                    entries.setdefault(key, (code_of("scenery", key), dims))
    leave_out(entries, renaming, layouts.all_layouts(family))
    return state_dict(entries, seed, sizes=dict(drawn.known), config=_config(family, table, drawn))


def _of_other_keys(table: Layout, known: Sequence[Layout]) -> Iterator[Rule]:
    """Rules of any layout of the family for what stands beside the experts."""
    own = {rule.hf for rule in table.rules}
    for rule in (rule for layout in known for rule in layout.rules):
        if rule.rename or (rule.hf not in own and "experts." not in rule.hf):
            yield rule


def _scenery(
    prefix: str, numbers: Sequence[int], sizes: DrawnSizes, draw: Any, always: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(key, shape) of what stands beside the experts, in all layers and around them."""
    if always or draw(st.booleans()):
        yield prefix + EMBEDDING, (7, sizes["h"])
    for layer in numbers:
        yield from _beside(f"{prefix}layers.{layer}.", sizes, draw, always)
    if draw(st.booleans()):
        yield "lm_head.weight", (7, sizes["h"])


def _same_names(table: Layout) -> Iterator[tuple[str, str]]:
    """Axes of several stacks of experts that config.json calls by one name."""
    first: dict[tuple[str, ...], str] = {}
    for axis, names in table.sizes.items():
        if first.setdefault(names, axis) != axis:
            yield first[names], axis


def _config(family: str, table: Layout, sizes: DrawnSizes) -> dict[str, Any]:
    """config.json as the table has its names: a dotted path leads to a sub-config, a number is a place in a list."""
    config: dict[str, Any] = {"model_type": family}
    for axis, names in table.sizes.items():
        *path, name = names[0].split(".")
        if not (name.isidentifier() or (path and name.isdecimal())):  # a sum, say, or a number
            continue
        place = name.isdecimal()
        *path, name = path if place else (*path, name)
        inner = config
        for step in path:
            inner = inner.setdefault(step, {})
        inner[name] = [*inner.get(name, ()), sizes[axis]] if place else sizes[axis]
    config |= {more: sizes[axis] - sizes[base] for axis, base, more in sums(table)}
    if "n" in sizes.known:
        config |= {"num_attention_heads": sizes["n"] * sizes["m"], "num_key_value_heads": sizes["n"]}
        config |= {"head_dim": sizes["b"]}
    return config


def _dtype_rule(draw: Any, given: Sequence[torch.dtype] | Callable[[str], torch.dtype]) -> Callable[[str, str], str]:
    """(role, key) -> dtype code. Experts have one dtype, what stands beside them may have another."""
    if callable(given):
        return lambda role, key: from_torch(given(key))
    choice = st.sampled_from(list(given))
    chosen = {"expert": draw(choice, label="dtype of the experts"), "scenery": draw(choice, label="dtype beside them")}
    return lambda role, key: from_torch(chosen[role])


def _keys_of(
    table: Layout, lora: bool, prefix: str, layer: int, sizes: DrawnSizes
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(key, shape) of every tensor of a layer that the layout's rules speak of."""
    for rule in table.rules:
        if ("lora_" in rule.to) == lora and not rule.rename:
            yield from _tensors(rule, False, prefix, layer, sizes, _firsts(table, sizes))


def _firsts(table: Layout, sizes: DrawnSizes) -> dict[str, int]:
    """Where stacks start to count: after the stack whose number of experts they name."""
    return {
        axis: sizes[next(a for a, known in table.sizes.items() if known == names)]
        for axis, names in table.firsts.items()
    }


def _tensors(
    rule: Rule, hub: bool, prefix: str, layer: int, sizes: DrawnSizes, firsts: Mapping[str, int] | None = None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(key, shape) of what a rule speaks of, on its hub's side or the layout's; `...` is no axis at all."""
    template, side = rule.ends(forward=hub)[:2]
    count = {axis: len(template.words[axis]) if axis in template.words else sizes[axis] for axis in side.keys}

    def size(axis: str, index: tuple[int, ...]) -> int:
        if "+" in axis:  # unequal parts: one of them where the key says which, else all
            parts = axis.split("+")
            return sizes[parts[index[0]]] if side.keys else sum(sizes[part] for part in parts)
        return int(axis) if axis.isdecimal() else count.get(axis) or _words(rule, axis) or sizes[axis]

    standing = {"name": "x", "text": "x.y"}
    fixed = {name: template.words.get(name, (standing.get(template.kind(name), "0"),))[0] for name in template.fields}
    fixed |= {"prefix": prefix, "layer": str(layer)}
    for index in product(*(range(count[axis]) for axis in side.keys)):
        fields = {
            axis: template.word(axis, at + (firsts or {}).get(axis, 0))
            for axis, at in zip(side.keys, index, strict=True)
        }
        dims = tuple(prod(size(axis, index) for axis in group) for group in side.groups if group != ("...",))
        yield template.format({**fixed, **fields}), dims


def _words(rule: Any, axis: str) -> int | None:
    """The size of an axis whose indices are words of a key template on either side (gate, up)."""
    ends = rule.ends(forward=True)
    return next((len(t.words[axis]) for t in (ends[0], ends[2]) if axis in t.words), None)


def _beside(at: str, sizes: DrawnSizes, draw: Any, always: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What stands beside the experts in a layer, piece by piece or not at all."""
    pieces: tuple[tuple[tuple[str, str], ...], ...] = (  # end of a key, its axes
        (("mlp.gate.weight", "eh"),),
        (("input_layernorm.weight", "h"), ("post_attention_layernorm.weight", "h")),
        (*((f"self_attn.{name}_proj.weight", name + "h") for name in "qkv"), ("self_attn.o_proj.weight", "hq")),
        tuple((f"self_attn.{name}_proj.bias", name) for name in "qkv"),
        tuple((f"mlp.shared_expert.{name}_proj.weight", "ih") for name in ("gate", "up")),
        (("mlp.gate.e_score_correction_bias", "e"),),
    )
    for number, piece in enumerate(pieces):
        if (always and number < 2) or draw(st.booleans()):  # the router and the norms come first
            yield from ((at + name, tuple(sizes[axis] for axis in axes)) for name, axes in piece)

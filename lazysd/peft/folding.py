"""What PEFT's ParamWrapper does to keys and axes: `base_layer.` where two wrappers nest, experts folded into ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import LayoutError
from ..layouts.keys import parse_key
from ..layouts.pattern import parse_axes
from ..layouts.rule import Layout
from ..tensor.lazy import LazyTensor
from .config import AdapterConfig, parameter_name
from .names import LoraNames, names_in

WRAPPED = ("lora_A.weight", "lora_B.weight")
_INNER = "base_layer."


def wrapped_modules(tensors: Mapping[str, LazyTensor], names: LoraNames) -> dict[str, set[str]]:
    """The experts' modules that PEFT has wrapped, each with the ends of its keys: "base_layer.lora_A.weight", …"""
    template = parse_key(names.experts.removesuffix("."))
    found: dict[str, set[str]] = {}
    for key in tensors:
        if key.endswith(WRAPPED):
            module = key.rsplit(".", 2)[0].removesuffix("." + _INNER[:-1])
            if template.match(module):
                found.setdefault(module, set()).add(key[len(module) + 1 :])
    return found


def is_paramwrapper(layout: Layout) -> bool:
    """Whether a layout folds ranks, so that its keys depend on what else is wrapped."""
    return names_in(layout) is not None and any(rule.to.endswith(_INNER + WRAPPED[0]) for rule in layout.rules)


def nest(tensors: Mapping[str, LazyTensor], layout: Layout, adapter: AdapterConfig) -> Mapping[str, LazyTensor]:
    """Give a parameter that is wrapped alone the keys it has beside another.

    PEFT writes `base_layer.` only where two wrappers nest, so target_parameters has to say which one a single one is.
    """
    names = names_in(layout)
    if names is None or not is_paramwrapper(layout):
        return tensors
    renamed: dict[str, str] = {}
    for module, ends in wrapped_modules(tensors, names).items():
        if any(end.startswith(_INNER) for end in ends):
            continue
        path = parameter_name(module) + "."
        inner, outer = adapter.targets(path + names.inner), adapter.targets(path + names.outer)
        if inner is None or inner == outer:
            said = "names both" if inner else "names neither" if inner is False else "is not known"
            raise LayoutError(
                f"{module}: one parameter is wrapped, and target_parameters, which should say whether it is "
                f"{names.inner} or {names.outer}, {said}; is a tensor missing, or adapter_config.json? "
                'State it: config={"target_parameters": ["mlp.experts.down_proj"]}'
            )
        if inner:
            renamed |= {f"{module}.{end}": f"{module}.{_INNER}{end}" for end in ends}
    return {renamed.get(key, key): node for key, node in tensors.items()} if renamed else tensors


def unnest(tensors: dict[str, LazyTensor], layout: Layout) -> dict[str, LazyTensor]:
    """The reverse of nest(): a single wrapper has no `base_layer.`."""
    names = names_in(layout)
    if names is None or not is_paramwrapper(layout):
        return tensors
    renamed: dict[str, str] = {}
    for module, ends in wrapped_modules(tensors, names).items():
        if all(end.startswith(_INNER) for end in ends):
            renamed |= {f"{module}.{end}": f"{module}.{end.removeprefix(_INNER)}" for end in ends}
    return {renamed.get(key, key): node for key, node in tensors.items()} if renamed else tensors


def fold_sizes(
    tensors: Mapping[str, LazyTensor], layout: Layout, sizes: Mapping[str, int], adapter: AdapterConfig
) -> dict[str, int]:
    """The number of experts behind folded axes: rows of a lora_A by the rank adapter_config.json states, never guessed.

    Where config.json gives the number as well, the two have to agree.
    """
    found: dict[str, tuple[int, str]] = {}
    for key, size, name in _folds(tensors, layout):
        rank = adapter.rank(name)
        if rank is None and "e" not in sizes:
            raise LayoutError(
                f"{key}: {size} is number of experts times rank, and neither is known: no adapter_config.json states "
                'r, no config.json num_experts; state one: config={"num_experts": …}, --num-experts'
            )
        if rank is None:
            continue
        num_experts = sizes.get("e", size // rank)
        if num_experts * rank != size:
            where = "config.json" if "e" in sizes else "this would be"
            raise LayoutError(
                f"{key}: {size} is not the number of experts ({where} {num_experts}) times the rank {rank} that "
                f"adapter_config.json states for {name}"
            )
        first = found.setdefault("e", (num_experts, key))
        if first[0] != num_experts:
            raise LayoutError(
                f"{first[1]} is folded from {first[0]} experts, {key} from {num_experts}; one rank is wrong"
            )
    return {axis: number for axis, (number, _) in found.items()}


def _folds(tensors: Mapping[str, LazyTensor], layout: Layout) -> Iterator[tuple[str, int, str]]:
    """(key, size of its folded axis, parameter) of every tensor in which experts and rank share an axis."""
    names = names_in(layout)
    for rule in layout.rules if names else ():
        assert names is not None
        groups = parse_axes(rule.axes, rule.shared)[1].groups
        axis = next((k for k, group in enumerate(groups) if {"e", "r"} <= set(group)), None)
        if axis is None:
            continue
        template = parse_key(rule.to)
        parameter = names.outer if "lora_down_" in rule.hf else names.inner
        for key, node in tensors.items():
            if template.match(key) and node.ndim == len(groups):
                module = key.rsplit(".", 2)[0].removesuffix("." + _INNER[:-1])
                yield key, node.dims[axis], f"{parameter_name(module)}.{parameter}"

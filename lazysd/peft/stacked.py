"""LoRA on stacked parameters, straight in transformers' own state dict: PEFT's ParamWrapper on any module.

Source: peft 0.21.2, `ParamWrapper` (lora_A's rows expert-major, lora_B's columns rank-major) and `_inject_parameters`
(parameters of a module are wrapped in the order in which they are registered, so that the last one is outermost).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..errors import LayoutError
from ..graph.compute import AddMatmul
from ..graph.rewrite import build
from ..layouts.rule import Layout
from ..tensor.lazy import LazyTensor
from .config import CONFIG, AdapterConfig, parameter_name
from .kind import MERGEABLE
from .tables import NEWEST

_INNER = "base_layer."
_ENDS = ("lora_A.weight", "lora_B.weight")
Tensors = Mapping[str, LazyTensor]


class Wrapper(NamedTuple):
    """One parameter of the base with its two factors."""

    parameter: str  # its key
    keys: tuple[str, str]  # of lora_A and lora_B in the adapter


def wrappers(hub: Tensors, update: Tensors, memory: Layout, said: AdapterConfig) -> list[Wrapper]:
    """Which parameter each pair of factors wraps.

    Args:
        hub: the base as transformers holds it.
        update: the adapter.
        memory: the layout of `hub`, whose rules say in which order a module registers its parameters.
        said: adapter_config.json.

    Raises LayoutError where target_parameters does not say what is wrapped.
    """
    modules: dict[str, dict[int, dict[str, str]]] = {}
    for key in update:
        end = next((end for end in _ENDS if key.endswith("." + end)), None)
        if end is None:
            continue
        path = parameter_name(key.removesuffix(end))
        module = path
        while module.endswith(_INNER):
            module = module.removesuffix(_INNER)
        if module + "weight" not in hub:
            depth = (len(path) - len(module)) // len(_INNER)
            modules.setdefault(module, {}).setdefault(depth, {})[end] = key
    found = []
    for module, levels in modules.items():
        targets = _targets(module, [key for key in hub if key.startswith(module)], memory, said, len(levels))
        for depth, parameter in enumerate(reversed(targets)):
            keys = levels.get(depth, {})
            if set(keys) != set(_ENDS):
                raise LayoutError(
                    f"{parameter}: {' and '.join(keys.values()) or 'nothing'} alone is no whole update of it; a LoRA "
                    f"has lora_A and lora_B, at {module}{_INNER * depth}"
                )
            found.append(Wrapper(parameter, (keys[_ENDS[0]], keys[_ENDS[1]])))
    return found


def _targets(module: str, keys: Iterable[str], memory: Layout, said: AdapterConfig, count: int) -> list[str]:
    """The wrapped parameters of a module, in the order in which they are registered."""
    known = _in_order(module, keys, memory)
    if not known:
        raise LayoutError(
            f"{module[:-1]}: in which order PEFT wraps the parameters of this module is in no table; merge it with PEFT"
        )
    stated = [key for key in known if said.targets(key)]
    if not stated and len(known) == count:
        return known
    if len(stated) != count:
        raise LayoutError(
            f"{module[:-1]}: {count} of its parameters {'is' if count == 1 else 'are'} wrapped, and target_parameters, "
            f"which should say which, names {', '.join(stated) or 'none'} of {', '.join(known)}; "
            'is a tensor missing, or adapter_config.json? State it: config={"target_parameters": [...]}'
        )
    return stated


def _in_order(module: str, keys: Iterable[str], memory: Layout) -> list[str]:
    """The stacked parameters of a module as transformers registers them: gate and up first, a bias after its weight."""
    found: dict[tuple[int, ...], str] = {}
    rules = [rule for rule in memory.rules if not rule.rename]
    for key in keys:
        for number, rule in enumerate(rules):
            template = rule.ends(True).target
            if (fields := template.match(key)) is not None and "." not in key[len(module) :]:
                words = [template.number(name, fields[name]) for name in template.words]
                found[(*_place(number, rule.hf), *words)] = key
    return [found[place] for place in sorted(found)]


def _place(number: int, hub: str) -> tuple[int, int]:
    """Rules come as gate and up, down, and the biases of both."""
    bias = hub.endswith(".bias")
    return (number - 2 if bias else number, int(bias))


def merged_in(
    hub: Tensors, update: Tensors, found: Iterable[Wrapper], said: AdapterConfig, flat: bool
) -> dict[str, LazyTensor]:
    """The wrapped parameters with their updates in them, as nodes. Reads nothing.

    Args:
        hub, update, said: as for wrappers().
        found: what wrappers() found.
        flat: whether the family's parameters are (experts, out, in), which PEFT takes them for since 0.19.1.

    Raises LayoutError where factors do not fit, or where which of them is which cannot be told.
    """
    ways: dict[bool, str] = {}  # whether lora_A holds the last axis of a parameter -> a key that says so
    square: list[Wrapper] = []
    for one in found:
        weight = hub[one.parameter]
        way = _way(one, weight, *(update[key] for key in one.keys))
        if weight.ndim != 3:
            continue
        if way is None:
            square.append(one)
        else:
            ways.setdefault(way, one.keys[0])
    if len(ways) > 1:
        raise LayoutError(f"{' and '.join(ways.values())} are of two generations of PEFT by their shapes; one is wrong")
    last = next(iter(ways), None)
    if last is not None:
        _agree(said, last, flat, ways[last])
    elif square:
        last = _stated(square[0], said, flat)
    return {one.parameter: _added(one, hub[one.parameter], update, said, bool(last)) for one in found}


def _way(one: Wrapper, weight: LazyTensor, first: LazyTensor, second: LazyTensor) -> bool | None:
    """Whether lora_A holds the last axis of the parameter; None where both axes are of one size."""
    for key, factor in zip(one.keys, (first, second), strict=True):
        if factor.ndim != 2 or factor.code not in MERGEABLE:
            raise LayoutError(f"{key} is {factor.code}{list(factor.dims)}, expected a matrix of floating-point numbers")
    if weight.code not in MERGEABLE:
        raise LayoutError(f"{one.parameter} is quantised ({weight.code}); dequantise the base before merging")
    sides = (first.dims[1], second.dims[0])
    if weight.ndim not in (2, 3) or sides not in (weight.dims[:-3:-1], weight.dims[-2:] if weight.ndim == 3 else ()):
        raise LayoutError(
            f"{one.parameter} is {list(weight.dims)}, which {one.keys[0]} {list(first.dims)} and {one.keys[1]} "
            f"{list(second.dims)} do not fit; the adapter belongs to another base"
        )
    return None if weight.dims[-1] == weight.dims[-2] else sides[0] == weight.dims[-1]


def _agree(said: AdapterConfig, last: bool, flat: bool, key: str) -> None:
    """Raise LayoutError where what wrote the adapter does not write such shapes."""
    for what, name in said.generations().items():
        if (last and name != NEWEST) or (not last and flat and name == NEWEST):
            raise LayoutError(
                f"evidence of the adapter's PEFT generation disagrees: {what} says {name}, the shape of {key} another; "
                "correct the wrong one"
            )


def _stated(one: Wrapper, said: AdapterConfig, flat: bool) -> bool:
    """The same by what wrote the adapter, where no shape tells."""
    generations = said.generations()
    if len(set(generations.values())) != 1:
        raise LayoutError(
            f"{one.parameter}: its two axes are of one size, so that only the version of PEFT says which factor is "
            f'which, and {"; ".join(generations) or f"{CONFIG} names none"}; state it: config={{"peft_version": ...}}'
        )
    newest = NEWEST in generations.values()
    if newest and not flat:
        raise LayoutError(
            f"{one.parameter}: its two axes are of one size, and whether PEFT takes it for transposed depends on the "
            "module in memory; merge it with PEFT"
        )
    return newest


def _added(one: Wrapper, weight: LazyTensor, update: Tensors, said: AdapterConfig, last: bool) -> LazyTensor:
    first, second = (update[key] for key in one.keys)
    experts = weight.dims[0] if weight.ndim == 3 else 1
    rank, left = divmod(first.dims[0], experts)
    name = one.parameter
    if not rank or left or second.dims[1] != first.dims[0]:
        raise LayoutError(
            f"{name}: {one.keys[0]} has {first.dims[0]} rows and {one.keys[1]} {second.dims[1]} columns, which should "
            f"be the rank times {experts} experts"
        )
    alpha = said.alpha(name)
    if alpha is None:
        raise LayoutError(f'{name}: no lora_alpha is known (no {CONFIG}?); state it: config={{"lora_alpha": ...}}')
    if said.rank(name) not in (None, rank):
        raise LayoutError(f"{name}: its lora_A has rank {rank}, {CONFIG} says {said.rank(name)}")
    a = first.reshape(experts, rank, first.dims[1])
    b = second.reshape(second.dims[0], rank, experts)
    straight = last or weight.ndim == 2
    factors = (b.permute(2, 0, 1), a) if straight else (a.permute(0, 2, 1), b.permute(2, 1, 0))
    base = weight if weight.ndim == 3 else weight.reshape(1, *weight.dims)
    made = build(AddMatmul(said.scale(rank, alpha)), (base, *factors))
    return made if weight.ndim == 3 else made.reshape(weight.dims)

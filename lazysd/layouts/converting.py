"""From one layout to another through the hub, and what adapters need on the way: fold sizes, nesting, ranks, alphas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt

from ..errors import LayoutError
from ..graph.building import many_nodes
from ..tensor.lazy import LazyTensor
from .adapter import Adapted, AdapterConfig, Scaled, adapter_config_for, expert_modules, parameter_name
from .composing import compose
from .keys import parse_key
from .pattern import parse_axes
from .rewriting import apply, apply_composed, check_passing
from .rule import Layout, LoraNames

NO_ADAPTER = AdapterConfig()
_WRAPPED = ("lora_A.weight", "lora_B.weight")
_MODULE_ENDS = (".lora_A.weight", ".lora_embedding_A")  # of other modules than experts, whose keys pass through
_INNER = "base_layer."


def convert(
    tensors: Mapping[str, LazyTensor],
    origin: Layout,
    target: Layout,
    sizes: Mapping[str, int],
    adapter: AdapterConfig = NO_ADAPTER,
    merge_rank: bool = False,
    firsts: Mapping[str, int] | None = None,
) -> dict[str, LazyTensor]:
    """From one layout to another. Builds a graph; reads nothing.

    Args:
        tensors: keys in `origin`.
        origin, target: layouts of one family.
        sizes: sizes of named axes, from config.json; "e" is the number of experts.
        adapter: what adapter_config.json says, where there is one: ranks unfold what PEFT folds.
        merge_rank: per-expert LoRA whose gate and up differ becomes one LoRA of twice the rank.
        firsts: numbers at which key axes start to count, where that is not 0.
    """
    return convert_adapter(tensors, origin, target, sizes, adapter, merge_rank, firsts)[0]


@many_nodes()
def convert_adapter(
    tensors: Mapping[str, LazyTensor],
    origin: Layout,
    target: Layout,
    sizes: Mapping[str, int],
    adapter: AdapterConfig,
    merge_rank: bool = False,
    firsts: Mapping[str, int] | None = None,
) -> tuple[dict[str, LazyTensor], AdapterConfig]:
    """As convert(), and what adapter_config.json has to say about the result."""
    plain = not merge_rank and not any(".lora_" in key for key in tensors)
    if plain and (straight := compose(origin, target, tensors)) is not None:
        check_pairs(tensors, origin)
        return apply_composed(tensors, straight, sizes, firsts or {}), adapter
    covered = {rule.hf for rule in target.rules}  # what the target's rules check on the way from the hub
    beyond = any(rule.hf not in covered for rule in origin.rules)
    hub = to_hub(tensors, origin, sizes, adapter, merge_rank, firsts, target.is_hub or beyond)
    held = adapted(hub, origin, adapter, merge_rank)
    stays = origin is target and not merge_rank  # gate and up need not share a lora_A where they stay apart
    made = dict(tensors) if stays else from_hub(hub, target, sizes, firsts, beyond)
    return made, adapter_config_for(target, adapter, held, origin)


def to_hub(
    tensors: Mapping[str, LazyTensor],
    origin: Layout,
    sizes: Mapping[str, int],
    adapter: AdapterConfig = NO_ADAPTER,
    merge_rank: bool = False,
    firsts: Mapping[str, int] | None = None,
    check: bool = True,
) -> Mapping[str, LazyTensor]:
    """To the hub: Hugging Face's per-expert weights, NeMo's grouped LoRA. `check` a hub though nothing changes."""
    if merge_rank and not origin.merged:
        raise LayoutError(
            f"merge_rank keeps gate and up apart that do not share a lora_A; in layout {origin.name!r} they share it"
        )
    if origin.is_hub:
        if check:
            check_passing(tensors, origin, sizes, firsts or {})
        check_pairs(tensors, origin)
        return tensors
    tensors = nest(tensors, origin, adapter)
    sizes = {**sizes, **fold_sizes(tensors, origin, sizes, adapter)}
    hub = apply(tensors, origin, False, sizes, origin.merged if merge_rank else None, firsts)
    check_pairs(hub, origin)
    return hub


def from_hub(
    hub: Mapping[str, LazyTensor],
    target: Layout,
    sizes: Mapping[str, int],
    firsts: Mapping[str, int] | None = None,
    check: bool = True,
) -> dict[str, LazyTensor]:
    """From the hub to a layout. `check` the hub's keys though the layout leaves them as they are."""
    if target.is_hub:
        if check:
            check_passing(hub, target, sizes, firsts or {})
        return dict(hub)
    return unnest(apply(hub, target, True, sizes, firsts=firsts), target)


def wrapped_modules(tensors: Mapping[str, LazyTensor], names: LoraNames) -> dict[str, set[str]]:
    """The experts' modules that PEFT has wrapped, each with the ends of its keys: "base_layer.lora_A.weight", …"""
    template = parse_key(names.experts.removesuffix("."))
    found: dict[str, set[str]] = {}
    for key in tensors:
        if key.endswith(_WRAPPED):
            module = key.rsplit(".", 2)[0].removesuffix("." + _INNER[:-1])
            if template.match(module):
                found.setdefault(module, set()).add(key[len(module) + 1 :])
    return found


def is_paramwrapper(layout: Layout) -> bool:
    """Whether a layout folds ranks, so that its keys depend on what else is wrapped."""
    return layout.lora is not None and any(rule.to.endswith(_INNER + _WRAPPED[0]) for rule in layout.rules)


def nest(tensors: Mapping[str, LazyTensor], layout: Layout, adapter: AdapterConfig) -> Mapping[str, LazyTensor]:
    """Give a parameter that is wrapped alone the keys it has beside another.

    PEFT writes `base_layer.` only where two wrappers nest, so target_parameters has to say which one a single one is.
    """
    names = layout.lora
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
    if layout.lora is None or not is_paramwrapper(layout):
        return tensors
    renamed: dict[str, str] = {}
    for module, ends in wrapped_modules(tensors, layout.lora).items():
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
    names = layout.lora
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


def lora_pairs(hub: Mapping[str, LazyTensor], names: LoraNames) -> Iterator[tuple[str, str, str | None, str | None]]:
    """(module, parameter, key of A, key of B) of every wrapped expert parameter, as the hub holds them."""
    for end, parameter in (("lora_gate_and_up_", names.inner), ("lora_down_", names.outer)):
        keys = [parse_key(names.experts + end + letter) for letter in "AB"]
        seen = dict.fromkeys(key.rsplit(".", 1)[0] for key in hub if any(template.match(key) for template in keys))
        for module in seen:
            a, b = f"{module}.{end}A", f"{module}.{end}B"
            yield module, parameter, a if a in hub else None, b if b in hub else None


def check_pairs(hub: Mapping[str, LazyTensor], origin: Layout) -> None:
    """Every lora_A has its lora_B, of the same rank and number of experts."""
    for module, parameter, a, b in lora_pairs(hub, origin.lora) if origin.lora else ():
        if a is None or b is None:
            raise LayoutError(f"{module}: the LoRA of {parameter} has no {'lora_A' if a is None else 'lora_B'}")
        first, second = hub[a].dims, hub[b].dims
        if len(first) != 3 or len(second) != 3 or (first[0], first[2]) != (second[0], second[1]):
            raise LayoutError(
                f"{module}: the factors of {parameter} do not fit: A (experts, in, rank) is {list(first)}, "
                f"B (experts, rank, out) is {list(second)}"
            )


def adapted(hub: Mapping[str, LazyTensor], origin: Layout, adapter: AdapterConfig, merge_rank: bool = False) -> Adapted:
    """What an adapter in the hub holds: ranks from shapes, alphas from its config.

    Raises LayoutError where adapter_config.json states another rank, or alphas that one parameter cannot have.
    """
    names = origin.lora
    parameters: dict[str, Scaled] = {}
    num_experts: dict[str, int] = {}
    for module, parameter, a, _ in lora_pairs(hub, names) if names else ():
        assert names is not None
        assert a is not None
        experts, _, rank = hub[a].dims
        name = f"{parameter_name(module)}.{parameter}"
        doubled = merge_rank and parameter == names.inner
        asked = expert_modules(origin, name, experts) if origin.name == "peft-per-expert" else [name]
        alphas = {adapter.alpha(alias) for alias in asked}
        ranks = {adapter.rank(alias) for alias in asked} - {None}
        if len(alphas) > 1:
            raise LayoutError(f"{name}: alpha_pattern gives its experts different alphas, {sorted(map(str, alphas))}")
        if ranks and ranks != {rank // 2 if doubled else rank}:
            raise LayoutError(
                f"{name}: its tensors have rank {rank // 2 if doubled else rank}, "
                f"adapter_config.json says {', '.join(map(str, ranks))}"
            )
        (alpha,) = alphas
        if doubled and alpha is None and adapter.exists:
            raise LayoutError(
                f"{name}: merge_rank doubles its rank, so that lora_alpha has to double, and adapter_config.json "
                'states none; state it: config={"lora_alpha": …}, --lora-alpha'
            )
        if doubled and alpha is not None:  # the scale stays what it was: alpha / r, or alpha / sqrt(r)
            alpha = alpha * (sqrt(2) if adapter.values.get("use_rslora") else 2)
        num_experts[name] = experts
        parameters[name] = (rank, alpha)
    modules = tuple(parameter_name(key.removesuffix(end)) for key in hub for end in _MODULE_ENDS if key.endswith(end))
    return Adapted(parameters, num_experts, modules)

"""Pairs of factors, and what an adapter in the hub holds: ranks from shapes, alphas from its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt

from ..errors import LayoutError
from ..layouts.keys import parse_key
from ..layouts.rule import Layout
from ..tensor.lazy import LazyTensor
from .config import CONFIG, Adapted, AdapterConfig, Scaled, expert_modules, parameter_name
from .names import LoraNames, names_in

_PARTNERS = {
    ".lora_A.weight": ".lora_B.weight",
    ".lora_B.weight": ".lora_A.weight",
    ".lora_embedding_A": ".lora_embedding_B",
    ".lora_embedding_B": ".lora_embedding_A",
}
_MODULE_ENDS = (".lora_A.weight", ".lora_embedding_A")  # of other modules than experts, whose keys pass through


def lora_pairs(hub: Mapping[str, LazyTensor], names: LoraNames) -> Iterator[tuple[str, str, str | None, str | None]]:
    """(module, parameter, key of A, key of B) of every wrapped expert parameter, as the hub holds them."""
    for end, parameter in (("lora_gate_and_up_", names.inner), ("lora_down_", names.outer)):
        keys = [parse_key(names.experts + end + letter) for letter in "AB"]
        seen = dict.fromkeys(key.rsplit(".", 1)[0] for key in hub if any(template.match(key) for template in keys))
        for module in seen:
            a, b = f"{module}.{end}A", f"{module}.{end}B"
            yield module, parameter, a if a in hub else None, b if b in hub else None


def check_pairs(hub: Mapping[str, LazyTensor], origin: Layout) -> None:
    """Every lora_A has its lora_B; those of experts are of the same rank and number of experts."""
    for key in hub:
        other = next((key.removesuffix(end) + _PARTNERS[end] for end in _PARTNERS if key.endswith(end)), None)
        if other is not None and other not in hub:
            raise LayoutError(f"{key} has no {other}: one factor alone is no whole update; is a tensor missing?")
    names = names_in(origin)
    for module, parameter, a, b in lora_pairs(hub, names) if names else ():
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
    names = names_in(origin)
    parameters: dict[str, Scaled] = {}
    num_experts: dict[str, int] = {}
    for module, parameter, a, _ in lora_pairs(hub, names) if names else ():
        assert names is not None
        assert a is not None
        if (peft_type := adapter.values.get("peft_type", "LORA")) != "LORA":
            raise LayoutError(f"{CONFIG}: peft_type is {peft_type!r}; only LORA adapters have such keys as {a}")
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

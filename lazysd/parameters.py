"""How many parameters tensors hold, and how many of them one token meets. Reads headers only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

from .errors import LazysdError
from .graph.node import Node
from .layouts.sizes import NUM_EXPERTS
from .quant import registry
from .quant.base import method_of
from .stores.strict_json import show

_EXPERT = re.compile(r"(?:^|\.)(?:experts|local_experts)(?:\.|$)")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k", "top_k_experts", "moe_topk")


class Parameters(NamedTuple):
    """Weights, and not what stands for them: of a quantised weight its values, and no scales."""

    total: int
    active: int | None  # that one token meets, where config.json says how many experts that are
    schemes: Mapping[str, int]  # weights that each few-bit format stores
    problem: str | None  # what kept a scheme from being read

    def __str__(self) -> str:
        active = f", {self.active:,} active for a token" if self.active else ""
        return f"{self.total:,} parameters{active}"


def parameters_of(tensors: Mapping[str, Node], config: Mapping[str, Any] | None, is_whole: bool = True) -> Parameters:
    """Count. Of a part of a checkpoint nobody knows how many are active."""
    counts, schemes, problem = _counts(tensors, config)
    return Parameters(sum(counts.values()), _active(counts, config) if is_whole else None, schemes, problem)


def _counts(
    tensors: Mapping[str, Node], config: Mapping[str, Any] | None
) -> tuple[dict[str, int], dict[str, int], str | None]:
    """Values by key of the weight, how many weights each scheme stores, and what kept a scheme from being read."""
    counts = {key: node.numel() for key, node in tensors.items()}
    schemes: Counter[str] = Counter()
    try:
        settings = registry.settings_of(config)
        weights = registry.find(tensors, settings)
        shapes = [registry.dims(weight, tensors, settings) for weight in weights]
    except LazysdError as error:
        return counts, {}, f"the quantised weights cannot be read: {error}"
    method = method_of(settings)
    if method is not None and not registry.is_known(method):
        return (
            counts,
            {},
            f"config.json says quant_method {show(method)}, which lazysd does not know; stored values count",
        )
    for weight, dims in zip(weights, shapes, strict=True):
        schemes[weight.scheme.name] += 1
        for part in registry.parts_of([weight]):
            counts.pop(part, None)
        counts[weight.key] = prod(dims)
    return counts, dict(schemes), None


def _active(counts: Mapping[str, int], config: Mapping[str, Any] | None) -> int | None:
    used, held = (next(_stated(config or {}, names), None) for names in (_PER_TOKEN, NUM_EXPERTS))
    if not used or not held or used > held:
        return None
    experts = sum(count for key, count in counts.items() if _EXPERT.search(key))
    return sum(counts.values()) - experts + experts * used // held


def _stated(config: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[int]:
    """A number under any of these names, in config.json or one of its parts."""
    tables = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    for table in tables:
        for name in names:
            value = table.get(name)
            if type(value) is int and value > 0:
                yield value

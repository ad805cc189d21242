"""What compressed-tensors says of its weights in config.json. No scheme itself; several schemes read it.

Source: compressed-tensors 0.20, quantization/quant_config.py and quant_args.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

METHOD = "compressed-tensors"


def weight_arguments(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The `weights` of every entry of config_groups: num_bits, type, strategy, group_size, block_structure, …"""
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            yield weights


def group_sizes(settings: Mapping[str, Any]) -> list[int]:
    """The sizes of groups along a row that the entries state, each once."""
    found = (arguments.get("group_size") for arguments in weight_arguments(settings))
    return list(dict.fromkeys(size for size in found if type(size) is int and size > 0))


def blocks(settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The blocks (rows, columns) that the entries state, each once: blocks proper, and groups along a row."""
    found: list[tuple[int, int]] = []
    for arguments in weight_arguments(settings):
        size = arguments.get("block_structure")
        if isinstance(size, (list, tuple)) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
            found.append((size[0], size[1]))
    found.extend((1, size) for size in group_sizes(settings))
    return list(dict.fromkeys(found))


def written(layout: str, weights: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The quantization_config of weights in one format; what `settings` states stays as it is."""
    group = {"targets": ["Linear"], "weights": dict(weights), "format": layout}
    said = {"quant_method": METHOD, "format": layout, "quantization_status": "compressed"}
    return {**said, "config_groups": {"group_0": group}, "ignore": [], **settings}

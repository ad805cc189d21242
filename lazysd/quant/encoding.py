"""Which weights of a checkpoint are encoded, and the tensors they become."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..errors import LayoutError
from ..graph.node import Node
from . import registry
from .base import FLOATS, Form, Scheme, Settings, Weight

# Left as they are, whatever program reads them: embeddings, heads, routers, and everything that is not a matrix.
_KEPT = re.compile(
    r"(?:.*\.)?(?:embed_tokens|wte|lm_head|embed_out|output|embed_in|word_embeddings|gate|router|classifier|"
    r"mlp\.shared_expert_gate|shared_expert_gate)(?:\.(?:weight|linear\.weight|layer\.weight))?"
)


def chosen(tensors: Mapping[str, Node], keys: tuple[str, ...] | None, scheme: Scheme) -> list[str]:
    """The keys of the weights to encode: those that match a glob, or every matrix of a linear layer or an expert.

    Of a scheme that programs read of stacked experts only, these alone, where there are any.
    """
    found = []
    stacks = scheme.of_stacks and any(_is_linear(key, node) and node.ndim == 3 for key, node in tensors.items())
    for key, node in tensors.items():
        if node.code not in FLOATS:
            continue
        if keys is not None:
            if any(fnmatchcase(key, glob) for glob in keys):
                found.append(key)
        elif _KEPT.fullmatch(key) is None and _is_linear(key, node) and not (stacks and node.ndim != 3):
            found.append(key)
    if keys is not None and not found:
        raise LayoutError(f"no floating-point weight matches {', '.join(keys)}; nothing would be encoded")
    return found


def _is_linear(key: str, node: Node) -> bool:
    return (node.ndim == 2 and key.endswith(".weight")) or (node.ndim == 3 and ".experts." in key)


def encode(
    tensors: Mapping[str, Node], scheme: Scheme, settings: Settings, keys: tuple[str, ...] | None, said: Settings
) -> tuple[dict[str, Any], list[str]]:
    """(every tensor, those of the encoded weights in place of the plain ones; the modules that stay plain).

    Args:
        tensors: key -> node; may hold weights that are quantised already, as `said` describes.
        scheme: to encode by.
        settings: what its quantization_config will say.
        keys: globs of the weights to encode; None chooses.
        said: the quantization_config there is.
    """
    there = {weight.parts["codes"]: weight for weight in registry.find(tensors, said)}
    parts = set(registry.parts_of(there.values()))
    wanted = set(chosen({key: node for key, node in tensors.items() if key not in parts}, keys, scheme))
    result: dict[str, Any] = {}
    plain: list[str] = []
    for key, node in tensors.items():
        if key in there:
            result |= _taken_over(there[key], tensors, scheme, settings, said)
        elif key in wanted:
            made = _encoded(key, node, scheme, settings, strict=keys is not None)
            if made is None:
                plain.append(key)
            result |= made or {key: node}
        elif key not in parts:
            result[key] = node
            if node.ndim >= 2 and key.endswith(".weight"):
                plain.append(key)
    if not there and len(result) == len(tensors):
        raise LayoutError(
            f"nothing would be encoded: no weight of a linear layer or an expert has a shape that {scheme.name} has a "
            f"form for ({len(wanted)} looked at); drop --quantize, or name weights (keys=)"
        )
    return result, [key.removesuffix(".weight") for key in plain]


def _encoded(key: str, node: Node, scheme: Scheme, settings: Settings, strict: bool) -> dict[str, Node] | None:
    try:
        made = scheme.encode(node, settings)
    except LayoutError as error:
        raise LayoutError(f"{key}: {error}") from error
    except ValueError as error:
        if strict:
            raise LayoutError(f"{key}: {error}; leave it out of the weights to encode") from error
        return None  # a shape that the format has no form for stays as it is, as transformers leaves it
    return _named(key, scheme, made)


def _taken_over(
    weight: Weight, tensors: Mapping[str, Node], scheme: Scheme, settings: Settings, said: Settings
) -> dict[str, Node]:
    """A weight that is quantised already: its codes under other names, or refused: anew, it would be rounded twice."""
    nodes = weight.nodes(tensors)
    if weight.scheme is scheme:
        return {weight.parts[role]: node for role, node in nodes.items()}
    try:
        made = scheme.take_over(weight.scheme, nodes, said)
    except LayoutError as error:
        raise LayoutError(f"{weight.key}: {error}") from error
    if made is None:
        raise LayoutError(
            f"{weight.key} is quantised already ({weight.scheme.name}), and {scheme.name} cannot take its codes over; "
            "decode it first: dequantize(checkpoint), --dtype"
        )
    return _named(weight.key, scheme, made)


def _named(key: str, scheme: Scheme, made: Mapping[str, Node]) -> dict[str, Node]:
    """Parts under the names of the scheme's form for this key."""
    form: Form | None = next((form for form in scheme.forms if key.endswith(form.weight)), None)
    if form is None:
        raise LayoutError(f"{key}: {scheme.name} has no names for such a weight")
    stem = key.removesuffix(form.weight)
    return {stem + form.suffixes[role]: node for role, node in made.items()}

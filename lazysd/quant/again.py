"""Quantised weights of which some change: what nothing has touched keeps its codes, the others are encoded again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import LayoutError
from ..layouts.keys import parse_key
from ..layouts.rule import Layout
from .base import Weight, label
from .travel import Load


def touched(changed: Iterable[str], layout: Layout | None) -> Iterator[str]:
    """The keys, in a layout, of what has changed in the hub."""
    rules = [(parse_key(rule.hf), parse_key(rule.to)) for rule in layout.rules] if layout is not None else []
    for key in changed:
        for here, there in rules:
            if (fields := here.match(key)) is not None:
                yield there.format(fields)
                break
        else:
            yield key


def put_back(load: Load, made: Mapping[str, Any], changed: set[str], requantize: bool) -> tuple[dict[str, Any], int]:
    """Plain weights that nothing has changed as the codes and scales that they were; and how many were encoded again.

    Args:
        load: the base, and its weights as plain ones.
        made: `load.plain` with changes, in the same layout.
        changed: keys of it.
        requantize: encode quantised weights that changed, by their own scheme; else they are refused.

    Raises:
        LayoutError: a quantised weight has changed that is not to be, or cannot be, encoded again.
    """
    result: dict[str, Any] = {}
    count = 0
    for key, node in made.items():
        weight = load.weights.get(key)
        if weight is None:
            result[key] = node
        elif key not in changed:
            result |= {part: load.tensors[part] for part in weight.parts.values()}
        elif requantize:
            result |= _encoded(load, weight, node)
            count += 1
        else:
            raise LayoutError(
                f"{key}: the base is quantised ({weight.scheme.name}), and an update cannot be added to codes; decode "
                'what is quantised (dtype="bf16", --dtype bf16), or encode what changes again, with a loss '
                "(requantize=True, --requantize)"
            )
    return result, count


def _encoded(load: Load, weight: Weight, node: Any) -> dict[str, Any]:
    """The parts of a changed weight, under the names and in the shapes and dtypes that they had."""
    before = weight.nodes(load.tensors)
    try:
        made = {**before, **weight.scheme.encode_again(node, before, load.settings)}
        for role, part in made.items():
            if (part.dims, part.code) != (before[role].dims, before[role].code):
                raise LayoutError(
                    f"encoded again, its {role} would be {label(part)}, the base has {label(before[role])}"
                )
    except (ValueError, LayoutError) as error:
        raise LayoutError(f"{weight.key} ({weight.scheme.name}): {error}; decode instead: --dtype bf16") from error
    return {weight.parts[role]: part for role, part in made.items()}

"""Why a checkpoint is taken for what it is, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..arguments import checked
from ..errors import LayoutError
from .detect import find

MAX_FAMILIES = 6  # named; more are counted


# What the letters of axes stand for, for people; others keep their letter.
_WORDS = {"e": "{} experts", "h": "hidden size {}", "i": "intermediate size {}", "f": "intermediate size {}"}


def dense_layout(
    tensors: Mapping[str, Any], config: Mapping[str, Any] | None = None, family: str | None = None
) -> tuple[str, str] | None:
    """(layout, family) of a model without experts, which only conversions and people ask for; None where none is."""
    try:
        found = find(tensors, config, family, lambda rivals, tensors, config: rivals[0], dense=True)
    except LayoutError:
        return None
    families = {one.family for one in found.layouts}
    return (found.layout.name, str(found.layout.family)) if found.layout and len(families) == 1 else None


@checked
def explain(
    tensors: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    family: str | None = None,
    layout: str | None = None,
) -> str:
    """What decided the family and layout, or what is missing: model_type, keys, sizes against shapes.

    Args:
        tensors: keys and lazy tensors.
        config: config.json.
        family, layout: stated for the checkpoint.
    """
    if layout is not None and family is not None:
        return f"stated: layout {layout!r} of family {family!r}"
    try:
        found = find(tensors, config, family, lambda rivals, tensors, config: rivals[0], dense=True)
    except LayoutError as error:
        return str(error)
    if found.layout is None:
        return found.why or "no key belongs to a layout of a known family"
    families = list(dict.fromkeys(one.family for one in found.layouts))
    if len(families) > 1:
        shown = ", ".join(families[:MAX_FAMILIES])
        more = f" and {len(families) - MAX_FAMILIES} more" if len(families) > MAX_FAMILIES else ""
        return f"{found.why}; the keys fit {shown}{more}: a conversion works where they agree"
    sizes = found.layout.config_sizes(config)
    stated = ", ".join(_WORDS.get(axis, axis + " = {}").format(size) for axis, size in sizes.items())
    return found.why + (f"; config.json states {stated}" if stated else "")

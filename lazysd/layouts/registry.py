"""The table of known layouts. Adding a family is one import and one entry here."""

from __future__ import annotations

from ..errors import LayoutError
from . import lora, qwen3_moe
from .rule import Layout

_LAYOUTS: dict[tuple[str, str], Layout] = {
    (layout.family, layout.name): layout for table in (qwen3_moe.LAYOUTS,) for layout in table
}
ALIASES = {"peft": lora.NEWEST}  # other names, resolved by get()
DEFAULT_FAMILY = qwen3_moe.FAMILY


def names(family: str | None = None) -> list[str]:
    """Names of the registered layouts, of one family or of all; aliases ("peft", the newest) come last."""
    found = list(dict.fromkeys(layout.name for layout in all_layouts(family)))
    return found + [alias for alias, name in ALIASES.items() if name in found]


def all_layouts(family: str | None = None) -> list[Layout]:
    """The registered layouts, of one family or of all, in the order of registration."""
    return [layout for layout in _LAYOUTS.values() if family in (None, layout.family)]


def resolve(name: str) -> str:
    """The name behind an alias; other names as they are."""
    return ALIASES.get(name, name)


def get(name: str, family: str | None = None) -> Layout:
    """The layout of that name. Raises LayoutError naming the ones there are."""
    found = [layout for layout in all_layouts(family) if layout.name == resolve(name)]
    if not found:
        known = ", ".join(names(family)) or "none"
        where = f" of family {family!r}" if family else ""
        raise LayoutError(f"no layout {name!r}{where}; there are: {known}")
    if len(found) > 1:
        families = ", ".join(layout.family for layout in found)
        raise LayoutError(f"layout {name!r} exists in several families ({families}); name the family as well")
    return found[0]


def register(layout: Layout, overwrite: bool = False) -> Layout:
    """Add a layout, so that convert(), detection and the command line know it; returns it."""
    ident = (layout.family, layout.name)
    if ident in _LAYOUTS and not overwrite:
        raise LayoutError(f"layout {layout.name!r} of family {layout.family!r} is registered already")
    _LAYOUTS[ident] = layout
    return layout

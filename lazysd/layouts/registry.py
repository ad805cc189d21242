"""Which layouts there are: families and dialects found by scanning their folders, and what users register.

A layout of a family in a dialect is derived when it is first asked for, so a hundred families cost an import nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..arguments import checked
from ..doors import modules_of
from ..errors import LayoutError
from ..nearest import did_you_mean
from .derive import derive
from .family import Dialect, Family, Speech
from .folders import FOLDERS
from .rule import Layout

FIRST = "qwen3_moe"  # the family meant where none is named and several have the layout

_LAYOUTS: dict[tuple[str, str], Layout] = {}  # registered by users, one by one
_FAMILIES: dict[str, Family] = {}
_DIALECTS: dict[str, Dialect] = {}
_ordered: dict[str, Dialect] = {}  # _DIALECTS in the order in which they are tried and shown
_DERIVED: dict[tuple[str, str], Layout | LayoutError] = {}
_ASKED: list[str] = []  # the group of entry points, once it has been looked at
GROUP = "lazysd.layouts"  # entry points of installed packages that add families, dialects or layouts


def _scan() -> None:
    for package in list(FOLDERS):
        for module in modules_of(package, FOLDERS.pop(package)):
            for family in (*getattr(module, "FAMILIES", ()), *filter(None, (getattr(module, "FAMILY", None),))):
                _add(_FAMILIES, family)
            if (dialect := getattr(module, "DIALECT", None)) is not None:
                _add(_DIALECTS, dialect)
    if not _ASKED:
        _ASKED.append(GROUP)
        from importlib.metadata import entry_points  # takes longer to import than all of this

        for point in entry_points(group=GROUP):
            _from_entry_point(point.load())


def _from_entry_point(found: Any) -> None:
    """What an installed package offers: a Family, Dialect or Layout, several of them, or a function that registers."""
    if isinstance(found, Layout):
        _LAYOUTS.setdefault((found.family, found.name), found)
    elif isinstance(found, (Family, Dialect)):
        _add(_FAMILIES if isinstance(found, Family) else _DIALECTS, found)
    elif callable(found):
        found()
    else:
        for one in found:
            _from_entry_point(one)


def _add(table: dict[str, Any], new: Family | Dialect) -> None:
    if new.name in table:
        raise LayoutError(f"two tables are named {new.name!r}: {table[new.name]!r} and {new!r}")
    taken = {kind: family.name for family in _FAMILIES.values() for kind in family.model_types}
    for kind in new.model_types if isinstance(new, Family) else ():
        if kind in taken:
            raise LayoutError(f"model_type {kind!r} is claimed by two families, {taken[kind]} and {new.name}")
    table[new.name] = new


def families() -> Mapping[str, Family]:
    """The families that have a table, by name."""
    _scan()
    return _FAMILIES


def dialects() -> Mapping[str, Dialect]:
    """The dialects, by name."""
    _scan()
    global _ordered
    if _ordered != _DIALECTS:  # asked thousands of times, and dicts of the same objects compare quickly
        _ordered = dict(sorted(_DIALECTS.items(), key=lambda item: (item[1].order, item[0])))
    return _ordered


@checked
def register_family(family: Family, overwrite: bool = False) -> Family:
    """Add a family, so that its checkpoints convert to every dialect it speaks; returns it."""
    _scan()
    _replace(_FAMILIES, family, overwrite)
    return family


@checked
def register_dialect(dialect: Dialect, overwrite: bool = False) -> Dialect:
    """Add a dialect, so that every family that speaks it converts to it; returns it."""
    _scan()
    _replace(_DIALECTS, dialect, overwrite)
    return dialect


def _replace(table: dict[str, Any], new: Family | Dialect, overwrite: bool) -> None:
    old = table.pop(new.name, None) if overwrite else None
    try:
        _add(table, new)
    except LayoutError:
        if old is not None:
            table[new.name] = old
        raise
    _DERIVED.clear()


def derived(family: Family, name: str) -> Layout:
    """The layout of a family that need not be registered. Raises LayoutError where it has none."""
    return derive(family, dialects().get(name), name)


@checked
def register(layout: Layout, overwrite: bool = False) -> Layout:
    """Add a layout, so that convert(), detection and the command line know it; returns it."""
    ident = (layout.family, layout.name)
    if not overwrite and (ident in _LAYOUTS or isinstance(_derived(*ident), Layout)):
        raise LayoutError(f"layout {layout.name!r} of family {layout.family!r} is registered already")
    _LAYOUTS[ident] = layout
    return layout


def family_names() -> list[str]:
    """Every family: those with a table, and those that only registered layouts name."""
    return list(dict.fromkeys((*families(), *(family for family, _ in _LAYOUTS))))


def family_of(model_type: str) -> str | None:
    """The family that a model_type of config.json names, or that a registered layout has as its family."""
    for family in families().values():
        if model_type in family.model_types:
            return family.name
    return model_type if any(family == model_type for family, _ in _LAYOUTS) else None


def nearest(name: str) -> list[str]:
    """Families whose names or model types look like this one."""
    from difflib import get_close_matches

    known = {kind: family.name for family in families().values() for kind in (family.name, *family.model_types)}
    known |= {family: family for family, _ in _LAYOUTS}
    return list(dict.fromkeys(known[kind] for kind in get_close_matches(name, known, n=6, cutoff=0.6)))[:3]


def candidates(family: str) -> list[str]:
    """Names of layouts that a family may have, in the order in which they are tried and shown."""
    derived = []
    if family in families():
        derived = [*dialects(), *families()[family].speaks]
    return list(dict.fromkeys([*derived, *(name for owner, name in _LAYOUTS if owner == family)]))


def _derived(family: str, name: str) -> Layout | LayoutError | None:
    """The layout, or why there is none; None where nobody has heard of it."""
    ident = (family, name)
    if family not in families():
        return None
    table = families()[family]
    if name not in dialects() and not (isinstance(said := table.speaks.get(name), Speech) and said.form):
        return None  # a program that no dialect describes
    if ident not in _DERIVED:
        try:
            _DERIVED[ident] = derive(table, dialects().get(name), name)
        except LayoutError as error:
            _DERIVED[ident] = error
    return _DERIVED[ident]


def layouts_of(family: str) -> list[Layout]:
    """The layouts of a family."""
    found = (_LAYOUTS.get((family, name)) or _derived(family, name) for name in candidates(family))
    return [layout for layout in found if isinstance(layout, Layout)]


@checked
def names(family: str | None = None) -> list[str]:
    """Names of the known layouts, of one family or of all; aliases come last."""
    if family is not None:
        found = [layout.name for layout in layouts_of(family)]
    else:
        found = list(dict.fromkeys(name for family in family_names() for name in candidates(family)))
    return found + [alias for alias, name in _aliases().items() if name in found]


@checked
def all_layouts(family: str | None = None) -> list[Layout]:
    """The known layouts, of one family or of all."""
    return [layout for owner in (family_names() if family is None else [family]) for layout in layouts_of(owner)]


@checked
def resolve(name: str) -> str:
    """The name behind an alias; other names as they are."""
    return _aliases().get(name, name)


def _aliases() -> dict[str, str]:
    """Other names of dialects, each with the dialect's own."""
    return {alias: dialect.name for dialect in dialects().values() for alias in dialect.aliases}


@checked
def get(name: str, family: str | None = None) -> Layout:
    """The layout of that name; where no family is named, Qwen3-MoE's, or that of the one family that has it.

    Raises LayoutError naming the ones there are, or why the family has none.
    """
    full = resolve(name)
    if family is None:
        owners = [owner for owner, known in _LAYOUTS if known == full]
        if isinstance(_derived(FIRST, full), Layout) and FIRST not in owners:
            owners.append(FIRST)
        if not owners:
            owners = [
                owner for owner in families() if full in candidates(owner) and isinstance(_derived(owner, full), Layout)
            ]
        if len(owners) > 1 and FIRST not in owners:
            raise LayoutError(
                f"layout {name!r} exists in several families ({', '.join(owners)}); name the family as well"
            )
        found = get_in(full, FIRST if FIRST in owners else owners[0]) if owners else None
    else:
        found = get_in(full, family)
    if isinstance(found, Layout):
        return found
    if isinstance(found, LayoutError):
        raise LayoutError(str(found))
    where = f" of family {family!r}" if family else ""
    known = names(family)
    near = did_you_mean(name, known)
    raise LayoutError(f"no layout {name!r}{where}{near}; there are: {', '.join(known) or 'none'}{hint(family)}")


def get_in(name: str, family: str) -> Layout | LayoutError | None:
    """The layout of a family, or why it has none."""
    return _LAYOUTS.get((family, name)) or _derived(family, name)


def hint(family: str | None) -> str:
    """What to say of a family that nobody knows: the nearest ones."""
    if family is None or family in family_names():
        return ""
    near = nearest(family)
    return (f"; nearest families: {', '.join(near)}" if near else "") + "; `lazysd layouts` lists the families"

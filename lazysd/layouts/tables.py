"""Tables of users' own: families, dialects and layouts as TOML, read with errors that point at the line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..arguments import checked
from ..errors import LayoutError, MissingShardError, ReadError
from . import registry
from .family import FUSED, INTERLEAVED, PER_EXPERT, TRANSPOSED, Dialect, Experts, Family, Speech
from .rule import Layout, Rule

FORMS = {"per-expert": PER_EXPERT, "fused": FUSED, "transposed": TRANSPOSED, "interleaved": INTERLEAVED}
Made = Family | Dialect | Layout
Place = tuple[str | int, ...]  # path in the file: ("layout", 0, "rule", 2, "axes")


@checked
def load(file: str | os.PathLike[str], overwrite: bool = False) -> list[Made]:
    """Register the families, dialects and layouts that a file describes; nothing is registered if one is wrong.

    A .toml file is a table (docs/layouts.md has examples). A .py file is run, which is your own code; what it leaves as
    FAMILY, FAMILIES, DIALECT or LAYOUTS is registered.

    Args:
        file: path of a .toml or .py file.
        overwrite: replace what is registered under the same names.

    Returns:
        What was registered, in the order of the file.

    Raises:
        LayoutError: naming the file and the line. MissingShardError: there is no such file.
        ReadError: it cannot be read.
    """
    path = Path(file)
    if not os.path.isfile(path):
        raise MissingShardError(f"cannot load {path}: no such file; check the path")
    made = _from_python(path) if path.suffix == ".py" else _from_toml(path)
    for one in made:
        add(one, overwrite)
    return made


def add(one: Made, overwrite: bool = False) -> None:
    """Register a family, a dialect or a layout."""
    if isinstance(one, Layout):
        registry.register(one, overwrite)
    elif isinstance(one, Family):
        registry.register_family(one, overwrite)
    else:
        registry.register_dialect(one, overwrite)


def _from_python(path: Path) -> list[Made]:
    import runpy

    names = runpy.run_path(str(path))
    found = [names.get("FAMILY"), *names.get("FAMILIES", ()), names.get("DIALECT"), *names.get("LAYOUTS", ())]
    return [one for one in found if isinstance(one, (Family, Dialect, Layout))]


def _from_toml(path: Path) -> list[Made]:
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ReadError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LayoutError(f"{path}: no TOML: {error}") from error
    lines = line_numbers(text)
    try:
        readers: dict[str, Callable[[Any, Place], Made]] = {"family": _family, "dialect": _dialect, "layout": _layout}
        _known(table, (), readers)
        found = [
            (kind, one, (kind, n)) for kind in readers for n, one in enumerate(_list(table.get(kind, []), (kind,)))
        ]
        if not found:
            raise _WrongError((), "describes no [[family]], [[dialect]] or [[layout]]")
        return [readers[kind](one, place) for kind, one, place in found]
    except _WrongError as wrong:
        place = wrong.place
        while place and place not in lines:
            place = place[:-1]
        raise LayoutError(f"{path}, line {lines.get(place, 1)}: {wrong.reason}") from wrong


@dataclass
class _WrongError(Exception):
    """What is wrong, and where in the file."""

    place: Place
    reason: str


_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*(?:\.\s*["']?([\w-]+)["']?\s*)?=""")


def line_numbers(text: str) -> dict[Place, int]:
    """Where tables and keys of a TOML file stand: path -> number of the line."""
    found: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    here: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            here = ()
            names = [name.strip().strip("\"'") for name in header[2].split(".")]
            for depth, name in enumerate(names):
                here = (*here, name)
                if depth == len(names) - 1 and header[1] == "[[":
                    counts[here] = counts.get(here, -1) + 1
                if here in counts:
                    here = (*here, counts[here])
            found.setdefault(here, number)
        elif key := _KEY.match(line):
            found.setdefault((*here, *(name for name in key.groups() if name)), number)
    return found


def _known(table: Any, place: Place, names: Any) -> Mapping[str, Any]:
    """The table, if it is one and every key of it means something."""
    if not isinstance(table, Mapping):
        raise _WrongError(place, f"{place[-1] if place else 'the file'} should be a table, it is {table!r}")
    for key in table:
        if key not in names:
            raise _WrongError((*place, key), f"{key!r} means nothing here; known are {', '.join(names)}")
    return table


def _list(value: Any, place: Place) -> list[Any]:
    if not isinstance(value, list):
        raise _WrongError(place, f"{place[-1]} should be a list, written [[{place[0]}]] or [...], it is {value!r}")
    return value


def _text(value: Any, place: Place) -> str:
    if not isinstance(value, str):
        raise _WrongError(place, f"{place[-1]} should be text, it is {value!r}")
    return value


def _texts(value: Any, place: Place) -> tuple[str, ...]:
    """Several texts; one alone may stand without brackets."""
    return tuple(_text(one, place) for one in (value if isinstance(value, list) else [value]))


def _flag(value: Any, place: Place) -> bool:
    if not isinstance(value, bool):
        raise _WrongError(place, f"{place[-1]} should be true or false, it is {value!r}")
    return value


def _texts_by_name(value: Any, place: Place) -> dict[str, tuple[str, ...]]:
    return {name: _texts(one, (*place, name)) for name, one in _known(value, place, value).items()}


def _text_by_name(value: Any, place: Place) -> dict[str, str]:
    return {name: _text(one, (*place, name)) for name, one in _known(value, place, value).items()}


def _form(value: Any, place: Place) -> Any:
    if isinstance(value, str) and value in FORMS:
        return FORMS[value]
    if not isinstance(value, Mapping):
        raise _WrongError(place, f"a form is one of {', '.join(FORMS)}, or a table kind = [key, axes]; it is {value!r}")
    form = {}
    for kind, pair in _known(value, place, PER_EXPERT).items():
        texts = _texts(pair, (*place, kind))
        if len(texts) != 2:
            raise _WrongError((*place, kind), f'{kind} should be ["key below the experts", "axes"], it is {pair!r}')
        form[kind] = texts
    return form


def _renames(value: Any, place: Place) -> tuple[Any, ...]:
    renames = []
    for number, one in enumerate(_list(value, place)):
        texts = _texts(one, (*place, number))
        if len(texts) not in (2, 3):
            raise _WrongError((*place, number), f'a rename is ["key on disk", "key there"] or with axes, it is {one!r}')
        renames.append(texts)
    return tuple(renames)


def _gate(value: Any, place: Place) -> str | None:
    return None if value is False else _text(value, place)


def _stacks(value: Any, place: Place) -> Any:
    if isinstance(value, list):
        return tuple(_experts(one, (*place, number)) for number, one in enumerate(value))
    return _experts(value, place)


def _speaks(value: Any, place: Place) -> dict[str, Any]:
    """Dialects of a family: true, why not, or a table of what it calls things."""
    return {
        name: _speech({} if said is True else said, (*place, name)) if not isinstance(said, str) else said
        for name, said in _known(value, place, value).items()
    }


_READ: dict[str, Callable[[Any, Place], Any]] = {
    **dict.fromkeys(
        ("name", "at", "up", "down", "config", "description", "source", "unless", "family", "prefix"), _text
    ),
    **dict.fromkeys(("num", "hidden", "inner", "first", "model_types", "apart", "has", "lacks", "beside"), _texts),
    **dict.fromkeys(("bias", "everywhere"), _flag),
    **dict.fromkeys(("num_of", "sizes", "firsts"), _texts_by_name),
    **dict.fromkeys(("disk", "form"), _form),
    "gate": _gate,
    "experts": _stacks,
    "renames": _renames,
    "refuses": _text_by_name,
    "speaks": _speaks,
}


def _read(kind: Any, value: Any, place: Place, **defaults: Any) -> Any:
    """A dataclass from a table whose keys are its fields."""
    known = [field.name for field in fields(kind) if field.name in _READ]
    table = _known(value, place, known)
    given = defaults | {name: _READ[name](one, (*place, name)) for name, one in table.items()}
    absent = [
        field.name
        for field in fields(kind)
        if field.name in ("name", "model_types", "family") and field.name not in given
    ]
    if absent:
        raise _WrongError(place, f"{absent[0]} is missing")
    return kind(**given)


def _experts(value: Any, place: Place) -> Experts:
    return _read(Experts, value, place)  # type: ignore[no-any-return]


def _speech(value: Any, place: Place) -> Speech:
    return _read(Speech, value, place)  # type: ignore[no-any-return]


def _family(value: Any, place: Place) -> Family:
    family: Family = _read(Family, value, place, experts=Experts())
    try:  # what the tables give is derived here, so that a wrong pattern is seen with its line
        for name in ("hf", *family.speaks):
            if not isinstance(family.speaks.get(name), str) and (name in registry.dialects() or name in family.speaks):
                registry.derived(family, name)
    except LayoutError as error:
        at = (*place, "speaks", name) if name in family.speaks else (*place, "experts")
        raise _WrongError(at, str(error)) from error
    return family


def _dialect(value: Any, place: Place) -> Dialect:
    return _read(Dialect, value, place, description="", form=None)  # type: ignore[no-any-return]


def _layout(value: Any, place: Place) -> Layout:
    table = dict(_known(value, place, [*(f.name for f in fields(Layout) if f.name in _READ), "rule"]))
    rules = [_rule(one, (*place, "rule", n)) for n, one in enumerate(_list(table.pop("rule", []), (*place, "rule")))]
    if not rules:
        raise _WrongError(place, "a layout needs a [[layout.rule]]")
    try:
        return _read(Layout, table, place, rules=tuple(rules))  # type: ignore[no-any-return]
    except LayoutError as error:
        raise _WrongError(place, str(error)) from error


def _rule(value: Any, place: Place) -> Rule:
    table = _known(value, place, ("hf", "to", "axes", "rename"))
    for name in ("hf", "to"):
        if name not in table:
            raise _WrongError(place, f"{name} is missing")
    texts = {name: _text(table[name], (*place, name)) for name in ("hf", "to", "axes") if name in table}
    try:
        return Rule(**texts, rename=_flag(table.get("rename", False), (*place, "rename")))
    except LayoutError as error:
        raise _WrongError((*place, "axes" if "axis" in str(error) and "axes" in table else "hf"), str(error)) from error

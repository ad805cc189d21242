"""Sizes that config.json states, wherever in it: names, dotted paths, sums and products of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import LayoutError
from ..sizes import MAX_NBYTES
from ..stores.strict_json import show

NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
_WORD = re.compile(r"[\w.]+|[+*/]")
MAX_TABLES = 1000  # sub-configs looked at; a config.json has a handful

Table = Mapping[str, Any]


def tables(config: Table | None) -> Iterator[tuple[str, Table]]:
    """(path, sub-config) of config.json itself, text_config, and every other table in it, outermost first."""
    todo: list[tuple[str, Any]] = [("", config or {})]
    seen = 0
    while todo and seen < MAX_TABLES:
        path, table = todo.pop(0)
        seen += 1
        yield path, table
        inner = [(f"{path}.{name}".lstrip("."), value) for name, value in table.items() if isinstance(value, Mapping)]
        todo += sorted(inner, key=lambda found: found[0].rsplit(".", 1)[-1] != "text_config")


def size(table: Table, text: str) -> int | None:
    """A size that a table states: a name, a dotted path ("ffn_config.moe_num_experts", "moe_num_experts.0"), or such
    joined by + * / from left to right. None where it states none.

    Only positive whole numbers count. LayoutError: a number that no file could hold; it is not written out.
    """
    total: int | None = None
    sign = "+"
    for word in _WORD.findall(text):
        if word in "+*/":
            sign = word
            continue
        value = int(word) if word.isascii() and word.isdecimal() else _at(table, word)
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if sign == "+" and total else 1):
            return None
        if total is None:
            total = value
        elif sign == "/" and total % value:
            return None
        else:
            total = total + value if sign == "+" else total * value if sign == "*" else total // value
        if total >= MAX_NBYTES:
            raise LayoutError(f"config.json states {show(total)} for {word}, more than any file holds; correct it")
    return total


def _at(table: Table, path: str) -> Any:
    value: Any = table
    for name in path.split("."):
        if isinstance(value, (list, tuple)) and name.isascii() and name.isdecimal():
            value = value[int(name)] if int(name) < len(value) else None
        else:
            value = value.get(name) if isinstance(value, Mapping) else None
    return value


def config_sizes(config: Table | None, names: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Axis -> size, for the axes whose names are given.

    The number of experts says which table of config.json counts: the outermost that states it, under any of its names.
    Other sizes come from that table or from the tables around it; a vision_config beside it has sizes of its own.
    """
    found: dict[str, int] = {}
    tried = {axis: tuple(texts) for axis, texts in names.items()}
    experts = tried.get("e", ())
    if experts and not any("." in text for text in experts):
        experts = tuple(dict.fromkeys((*experts, *NUM_EXPERTS)))
    home = None  # path of the table that states the number of experts
    for path, table in tables(config):
        if (value := _first(table, experts)) is not None:
            found["e"], home = value, path
            break
    for path, table in tables(config):
        inside = home is None and path in ("", "text_config")
        around = home is not None and (path == home or path == "" or home.startswith(path + "."))
        if not inside and not around:
            continue
        for axis, texts in tried.items():
            value = _first(table, texts) if axis != "e" else None
            if value is not None and (axis not in found or path == home):
                found[axis] = value
    return found


def _first(table: Table, texts: Iterable[str]) -> int | None:
    return next((value for text in texts if (value := size(table, text)) is not None), None)


def stated_over(config: Table | None, stated: Table) -> dict[str, Any]:
    """config.json with what the caller states put over it: a number of experts counts under whatever name."""
    base = dict(config or {})
    if any(name in stated for name in NUM_EXPERTS):
        base = {name: value for name, value in base.items() if name not in NUM_EXPERTS}
    return {**base, **stated}

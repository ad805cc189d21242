"""Doors: rooms whose members are the files that stand in them, found by what they define."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any


def modules_of(room: str, path: Iterable[str] | None = None) -> Iterator[ModuleType]:
    """Every file and folder of a package, whose files are at `path`, imported, in the order of their names."""
    path = importlib.import_module(room).__path__ if path is None else path
    for found in sorted(pkgutil.iter_modules(path), key=lambda found: found.name):
        yield importlib.import_module(f"{room}.{found.name}")


def members_of(room: str, name: str) -> list[Any]:
    """What the files and folders of a package define under `name`."""
    return [getattr(module, name) for module in modules_of(room) if hasattr(module, name)]


def ranked(room: str, name: str) -> tuple[Any, ...]:
    """The same in the order of their ranks: the preferred ones first."""
    return tuple(sorted(members_of(room, name), key=lambda member: member.rank))

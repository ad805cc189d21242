"""What checkpoints can be written as: the members of this room that have a `SINK`, by name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from . import __path__ as _folder
from .base import Sink


@cache
def members() -> dict[str, Sink]:
    """Every `SINK` that a file or folder of this room defines."""
    found = [importlib.import_module(f".{item.name}", __package__) for item in pkgutil.iter_modules(_folder)]
    sinks: list[Sink] = [module.SINK for module in found if hasattr(module, "SINK")]
    return {sink.name: sink for sink in sinks}


def get(name: str) -> Sink:
    """The sink of a name. ValueError where there is none."""
    if name not in members():
        raise ValueError(f"cannot write a checkpoint as {name!r}: expected one of {', '.join(sorted(members()))}")
    return members()[name]

"""What checkpoints can be written as: the members of this room that have a `SINK`, by name."""

from __future__ import annotations

from functools import cache

from ..doors import members_of
from .base import Sink


@cache
def members() -> dict[str, Sink]:
    """Every `SINK` that a file or folder of this room defines."""
    sinks: list[Sink] = members_of(__package__, "SINK")
    return {sink.name: sink for sink in sinks}


def get(name: str) -> Sink:
    """The sink of a name. ValueError where there is none."""
    if name not in members():
        raise ValueError(f"cannot write a checkpoint as {name!r}: expected one of {', '.join(sorted(members()))}")
    return members()[name]

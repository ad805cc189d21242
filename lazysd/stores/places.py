"""Which store a path belongs to: the members of this room are asked in turn."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..doors import ranked
from ..errors import MissingShardError
from .base import Opens, Options, Place


@cache
def members() -> tuple[Opens, ...]:
    """Every `STORE` that a file of this folder defines, in the order of their ranks."""
    return ranked(__package__, "STORE")


def place_of(path: Any, options: Options) -> Place:
    """What a user means by `path`. Reads nothing but the names that it takes to find out.

    Raises:
        MissingShardError: nothing is there. TypeError: no store knows this kind of path.
    """
    for store in members():
        if (place := store.place(path, options)) is not None:
            return place
    if isinstance(path, str):
        raise MissingShardError(f"cannot open {path}: no such file or folder; check the path")
    raise TypeError(f"cannot open {type(path).__name__}: expected a path, bytes, or a mapping of names to bytes")

"""The compiled kernel, `_strided.c`: there where a compiler was when the package was installed."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from ...graph.boxes import Dims
from .base import Kernel, Strided

SWITCH = "LAZYSD_KERNEL"  # "off": do without, for instance to find out whether it is at fault
VERSION = 1  # of the C code's interface; a file that an older checkout has left behind is not used
TILE_EDGE = 64  # elements along each side of a tile, at most 64


class Compiled(Kernel):
    """Copies by C code of our own: tiles that are turned in registers, 16 bytes at a time."""

    name = "compiled"
    rank = 10

    def is_available(self) -> bool:
        return _module() is not None

    def copy(self, dims: Dims, itemsize: int, target: Strided, source: Strided) -> None:
        _module().copy(dims, itemsize, *target, *source, TILE_EDGE)


@cache
def _module() -> Any:
    if os.environ.get(SWITCH, "on").lower() == "off":
        return None
    try:
        from .. import _strided  # type: ignore[attr-defined]
    except ImportError:
        return None
    return _strided if _strided.VERSION == VERSION else None


KERNEL = Compiled()

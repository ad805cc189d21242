"""The compiled kernel, `_strided.c`: there where a compiler was when the package was installed."""

from __future__ import annotations

from typing import Any, cast

from ...compiled import built
from ...graph.boxes import Dims
from .base import Kernel, Reading, Strided

MODULE = "lazysd.move._strided"
VERSION = 1  # of the C code's interface; a file that an older checkout has left behind is not used
TILE_EDGE = 64  # elements along each side of a tile, at most 64


class Compiled(Kernel):
    """Copies by C code of our own: tiles that are turned in registers, 16 bytes at a time."""

    name = "compiled"
    rank = 10

    def is_available(self) -> bool:
        return built(MODULE, VERSION) is not None

    def copy(self, dims: Dims, itemsize: int, target: Strided, source: Strided) -> None:
        built(MODULE, VERSION).copy(dims, itemsize, *target, *source, TILE_EDGE)

    @property
    def reads(self) -> bool:
        return hasattr(built(MODULE, VERSION), "gather")  # not on every system

    def gather(
        self, fd: int, reading: Reading, buffer: Any, dims: Dims, itemsize: int, target: Strided, pitch: int
    ) -> tuple[int, int, int] | None:
        found = built(MODULE, VERSION).gather(fd, *reading, buffer, dims, itemsize, *target, pitch, TILE_EDGE)
        return cast("tuple[int, int, int] | None", found)


KERNEL = Compiled()

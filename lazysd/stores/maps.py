"""A file mapped into memory without keeping it open: a thousand shards map under a limit of 256 descriptors.

`mmap.mmap` of Python duplicates the descriptor and holds it as long as the map, so the system's call is made directly.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from functools import cache
from typing import Any

_FAILED = ctypes.c_void_p(-1).value
_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # which Python 3.11 does not name


def map_private(fd: int, nbytes: int) -> memoryview:
    """All of a file, as private memory: writing to it changes memory, never the file.

    It reserves no memory, so files larger than memory map as well. The map goes with the last view of it.

    Raises:
        OSError: the system refuses.
    """
    if _libc() is None or not hasattr(mmap, "MAP_PRIVATE"):
        return memoryview(mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY))
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", _NORESERVE)
    address = _libc().mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    held = (ctypes.c_ubyte * nbytes).from_address(address)
    weakref.finalize(held, _libc().munmap, address, nbytes).atexit = False
    return memoryview(held).cast("B")


@cache
def _libc() -> Any:
    """The system's own mmap; None where Python's has to do, which keeps a descriptor of each map."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.munmap  # noqa: B018 - looked up
    except (OSError, AttributeError, TypeError):  # TypeError: a system whose libraries all have names
        return None
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ctypes.c_int64,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc

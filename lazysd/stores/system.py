"""Calls that not every system has, and what stands in for them: reading and writing at an offset, limits, flags."""

from __future__ import annotations

import os
import threading

_position = threading.Lock()  # a descriptor has one position, so that who moves it reads or writes before anyone else
_USUAL_MAX_OPEN = 512  # of a system that does not tell; Windows has this many


def read_flags() -> int:
    """What a file is opened with for reading: bytes as they are, closed in programs that are started, never waiting."""
    return os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def read_at(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer from `offset`; how many bytes came, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    if hasattr(os, "pread"):
        data = os.pread(fd, len(buffer), offset)
    else:
        with _position:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def write_at(fd: int, data: memoryview, offset: int) -> int:
    """Write at `offset`; how many bytes went."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _position:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def max_open() -> int:
    """How many descriptors this process may have open; negative where there is no limit."""
    try:
        import resource
    except ImportError:
        return _USUAL_MAX_OPEN
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

"""One source file: opened once, read by offset from any thread, mapped only where a zero-copy view is asked for."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from ..errors import ClosedCheckpointError, MissingShardError, ReadError, SourceChangedError

READ_LIMIT = 1 << 30  # bytes a single preadv asks for; Linux caps one call below 2 GiB


class Identity(NamedTuple):
    """What makes a file the same file as before."""

    device: int
    inode: int
    size: int
    mtime_ns: int


class _Handle:
    """An open descriptor, closed when nobody uses it any more: a reader that meets close() still reads its own file."""

    __slots__ = ("fd",)

    def __init__(self, fd: int):
        self.fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound: modules may be gone at exit
        close(self.fd)


class SourceFile:
    """A file that tensors are read from. Thread-safe; the handle is opened at the first read and kept."""

    def __init__(self, path: str, identity: Identity | None = None, io: str = "mmap"):
        self.path = path
        self.io = io
        self.identity = identity or identify(path)
        self._handle: _Handle | None = None
        self._map: mmap.mmap | None = None
        self._lock = threading.Lock()
        self._closed = False

    def _open(self) -> _Handle:
        """The open file; opening checks that it is still the one whose header was read."""
        handle = self._handle
        if handle is None:
            with self._lock:
                if self._closed:
                    raise ClosedCheckpointError(f"{self.path} belongs to a closed checkpoint; open it again to read")
                if self._handle is None:
                    try:
                        opened = _Handle(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
                    except FileNotFoundError as error:
                        raise MissingShardError(f"{self.path} is gone since the checkpoint was opened") from error
                    except OSError as error:
                        raise ReadError(f"{self.path} cannot be opened: {error.strerror}") from error
                    if _identity_of(os.fstat(opened.fd)) != self.identity:
                        raise SourceChangedError(
                            f"{self.path} was modified since the checkpoint was opened; open it again"
                        )
                    self._handle = opened
                handle = self._handle
        return handle

    def pread(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` (flat bytes) from `offset`. Raises ReadError on a short file."""
        handle, done = self._open(), 0
        while done < len(buffer):
            try:
                count = os.preadv(handle.fd, [buffer[done : done + READ_LIMIT]], offset + done)
            except OSError as error:
                raise ReadError(f"{self.path}: reading at {offset + done} failed: {error.strerror}") from error
            if not count:
                raise ReadError(
                    f"{self.path} ends at byte {offset + done}, {len(buffer) - done} bytes short of what its header "
                    "promises; it was truncated after it was opened"
                )
            done += count

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """A zero-copy view of a byte range, None where io="pread".

        The map is private and writable: writing to the view changes memory, never the file. It reserves no memory
        (MAP_NORESERVE), so files larger than memory map as well.
        """
        if self.io != "mmap" or not nbytes:
            return None
        mapped = self._map
        if mapped is None:
            handle = self._open()
            with self._lock:
                if self._map is None:
                    if os.fstat(handle.fd).st_size < self.identity.size:  # a map past the end would kill the process
                        raise ReadError(f"{self.path} was truncated since the checkpoint was opened")
                    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
                    self._map = mmap.mmap(
                        handle.fd, self.identity.size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE
                    )
                mapped = self._map
        return memoryview(mapped)[offset : offset + nbytes]

    def check_unchanged(self) -> None:
        """Raise SourceChangedError unless path and open handle are still the file that was opened."""
        found, handle = identify(self.path), self._handle
        if found != self.identity or (handle is not None and _identity_of(os.fstat(handle.fd)) != self.identity):
            raise SourceChangedError(
                f"{self.path} changed while it was read (was {self.identity.size} bytes, is {found.size}); "
                "what was made from it cannot be trusted; run again when nothing writes to it"
            )

    def close(self) -> None:
        """Close the handle. Views handed out stay valid: they hold the map themselves."""
        with self._lock:
            self._closed = True
            self._handle = self._map = None

    def __reduce__(self) -> tuple[type[SourceFile], tuple[str, Identity, str]]:
        return SourceFile, (self.path, self.identity, self.io)


def identify(path: str) -> Identity:
    """The identity of the file at `path`."""
    try:
        return _identity_of(os.stat(path))
    except FileNotFoundError as error:
        raise MissingShardError(f"{path} does not exist") from error


def _identity_of(status: os.stat_result) -> Identity:
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

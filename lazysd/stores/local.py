"""Files on a local disk: opened at the first read, mapped only where a zero-copy view is asked for."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import ClosedCheckpointError, MissingShardError, ReadError, SourceChangedError
from .base import Cost, File, Gather, Parts
from .handles import Handle, Handles
from .maps import map_private
from .regular import check_regular, open_regular, unreadable
from .system import read_at

READ_LIMIT = 1 << 30  # bytes a single preadv asks for; Linux caps one call below 2 GiB

# A page of a disk, or a system call, costs as much as copying 8 KiB. A block and its transposed copy stay in a core's
# second-level cache together. Threads read in parallel by themselves.
COST = Cost(gap_nbytes=8 << 10, block_nbytes=1 << 20, num_in_flight=1)

_handles = Handles()


class Identity(NamedTuple):
    """What makes a file the same file as before. ctime tells where someone has set the mtime back."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class LocalFile(File):
    """A file that tensors are read from. Its handle may be closed in between, and opened again at the next read."""

    cost = COST
    has_descriptor = True

    def __init__(self, path: str, identity: Identity | None = None, io: str = "mmap", name: str | None = None):
        self.path = path
        self.name = os.path.basename(path) if name is None else name
        self.io = io
        self.handle: Handle | None = None
        self._identity = identity or identify(path)
        self._mapped: memoryview | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def size(self) -> int:
        return self._identity.size

    @property
    def identity(self) -> Identity:
        return self._identity

    def _open(self) -> Handle:
        """The open file; opening checks that it is still the one whose header was read."""
        handle = self.handle
        if handle is None:
            with self._lock:
                if self._closed:
                    raise ClosedCheckpointError(f"{self.path} belongs to a closed checkpoint; open it again to read")
                handle = self.handle
                if handle is None:
                    handle = self.handle = self._new_handle()
                    _handles.keep(self)
        return handle

    def _new_handle(self) -> Handle:
        try:
            handle = Handle(open_regular(self.path))
        except MissingShardError as error:
            raise MissingShardError(f"{self.path} is gone since the checkpoint was opened") from error
        if identify(self.path, handle.fd) != self._identity:
            raise SourceChangedError(f"{self.path} was modified since the checkpoint was opened; open it again")
        return handle

    def texts(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """With a handle of its own, closed again: data is read much later, and then the file is looked at anew."""
        held = [bytearray(nbytes) for _, nbytes in ranges]
        handle = self._new_handle()
        self._read_by(handle, [(memoryview(buffer), at) for buffer, (at, _) in zip(held, ranges, strict=True)])
        return [bytes(buffer) for buffer in held]

    def _fill(self, parts: Parts) -> None:
        self._read_by(self._open(), parts)

    def _read_by(self, handle: Handle, parts: Parts) -> None:
        if isinstance(parts, Gather):
            if failed := parts.by(handle.fd):
                raise self._failed(*failed)
            return
        for buffer, offset in parts:
            done = 0
            while done < len(buffer):
                try:
                    count = read_at(handle.fd, buffer[done : done + READ_LIMIT], offset + done)
                except OSError as error:
                    raise self._failed(offset + done, len(buffer) - done, error.errno or errno.EIO) from error
                if not count:
                    raise self._failed(offset + done, len(buffer) - done, 0)
                done += count

    def _failed(self, offset: int, missing: int, number: int) -> ReadError:
        if number:
            return ReadError(f"{self.path}: reading at {offset} failed: {os.strerror(number)}")
        return ReadError(
            f"{self.path} ends at byte {offset}, {missing} bytes short of what its header promises; it was truncated "
            "after it was opened"
        )

    def _map(self, offset: int, nbytes: int) -> memoryview | None:
        if self.io != "mmap":
            return None
        mapped = self._mapped
        if mapped is None:
            handle = self._open()
            with self._lock:
                if self._mapped is None:
                    if identify(self.path, handle.fd).size < self.size:  # a map past the end would kill the process
                        raise ReadError(f"{self.path} was truncated since the checkpoint was opened")
                    try:
                        self._mapped = map_private(handle.fd, self.size)
                    except OSError as error:
                        raise ReadError(
                            f'{self.path} cannot be mapped: {error.strerror}; open it with io="pread"'
                        ) from error
                mapped = self._mapped
        return mapped[offset : offset + nbytes]

    def check_unchanged(self) -> None:
        found, handle = identify(self.path), self.handle
        if found != self._identity or (handle is not None and identify(self.path, handle.fd) != found):
            raise SourceChangedError(
                f"{self.path} changed while it was read (was {self.size} bytes, is {found.size}); "
                "what was made from it cannot be trusted; run again when nothing writes to it"
            )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self.handle = self._mapped = None

    def __reduce__(self) -> tuple[type[LocalFile], tuple[Any, ...]]:
        return LocalFile, (self.path, self._identity, self.io, self.name)


def identify(path: str, fd: int | None = None) -> Identity:
    """The identity of the regular file at `path`, or of the one that was opened by that name."""
    try:
        status = os.stat(path) if fd is None else os.fstat(fd)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    check_regular(path, status.st_mode)
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

"""A shard being written: at any offset, from any thread, past the page cache where the file system allows it.

A checkpoint is written once and may be larger than memory. Through the page cache, every byte would be copied once more
into pages that nobody reads, and pages of the source would have to go for them. So the whole pages of a large write go
straight from the worker's buffer to the disk (O_DIRECT); its ragged ends, and small writes, go the usual way.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from .journal import no_links
from .system import write_at

PAGE_NBYTES = 4096  # what O_DIRECT wants offset, length and memory to be multiples of, on any disk in use
DIRECT_MIN_NBYTES = 256 << 10  # smaller writes are no faster past the page cache


class ShardFile:
    """A file of known size, preallocated. What stands around the tensors is written last, by `finish`."""

    def __init__(self, path: Path, nbytes: int):
        self.path, self.nbytes = path, nbytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | no_links(), 0o666)
        self._direct: int | None = None
        self._buffered = threading.Lock()
        try:
            _allocate(self._fd, nbytes)
            self._direct = _open_direct(path)
        except BaseException:
            self.close()
            raise

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of `data` (flat bytes) at `offset`. Quickest where its address and offset agree modulo a page."""
        first, last = -offset % PAGE_NBYTES, len(data) - (offset + len(data)) % PAGE_NBYTES
        done = 0
        if self._direct is not None and last - first >= DIRECT_MIN_NBYTES:
            self._write_buffered(data[:first], offset)
            done = first + self._write_direct(data[first:last], offset + first)
        self._write_buffered(data[done:], offset + done)

    def finish(self, around: Iterable[tuple[int, bytes]]) -> os.stat_result:
        """Write (offset, bytes) of what is no tensor data, make all durable, and close; what the file is by then."""
        try:
            for offset, piece in around:
                self._write_buffered(memoryview(piece), offset)
            os.fsync(self._fd)
            return os.fstat(self._fd)
        finally:
            self.close()

    def close(self) -> None:
        """Close without finishing; the file stays as it is."""
        for fd in (self._direct, self._fd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self._fd, self._direct = -1, None

    def _write_direct(self, data: memoryview, offset: int) -> int:
        """Bytes written of whole pages; fewer than all where the file system turns out not to take them."""
        done = 0
        while done < len(data) and self._direct is not None and done % PAGE_NBYTES == 0:
            try:
                done += write_at(self._direct, data[done:], offset + done)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                return done  # memory or disk wants another alignment: the rest takes the usual way
        return done

    def _write_buffered(self, data: memoryview, offset: int) -> None:
        done = 0
        if not data:
            return
        with self._buffered:  # the kernel lets one buffered writer into a file at a time; waiting here is cheaper
            while done < len(data):
                done += write_at(self._fd, data[done:], offset + done)
            if len(data) >= DIRECT_MIN_NBYTES:  # have the disk begin now: the sync at the end then finds little to do
                _begin_writeback(self._fd, offset, len(data))


def _allocate(fd: int, nbytes: int) -> None:
    """Reserve the space, so that a full disk is found before the work is done."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, nbytes)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(fd, nbytes)


def _begin_writeback(fd: int, offset: int, nbytes: int) -> None:
    if hasattr(os, "posix_fadvise") and hasattr(os, "POSIX_FADV_DONTNEED"):
        os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)


def _open_direct(path: Path) -> int | None:
    """A second descriptor that bypasses the page cache; None where the file system has no such thing."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | no_links())
    except (OSError, AttributeError):  # AttributeError: a system without O_DIRECT
        return None

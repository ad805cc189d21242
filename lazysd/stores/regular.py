"""Opening files nobody vouches for: never blocking, and regular files only."""

from __future__ import annotations

import os
import stat

from ..errors import FormatError, LazysdError, MissingShardError, ReadError
from .system import read_flags

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of(mode: int) -> str:
    """What `mode` (st_mode) is that of; empty for a regular file."""
    if stat.S_ISREG(mode):
        return ""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "not a regular file")


def check_regular(path: str | os.PathLike[str], mode: int) -> None:
    """Raise FormatError unless `mode` (st_mode) is that of a regular file."""
    if kind := kind_of(mode):
        raise FormatError(f"cannot read {path}: expected a regular file, found {kind}; pass the file or folder itself")


def unreadable(path: str | os.PathLike[str], error: Exception) -> LazysdError:
    """The error of ours for what came up while the file at `path` was looked at or opened; ours stay as they are."""
    if isinstance(error, LazysdError):
        return error
    if isinstance(error, FileNotFoundError):
        return MissingShardError(f"cannot read {path}: no such file; check the path")
    reason = getattr(error, "strerror", None) or error  # a NUL byte in the path is a ValueError
    return ReadError(f"cannot open {path}: {reason}; check the path and its permissions")


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading and return its descriptor; never blocks on a pipe or a device."""
    try:
        check_regular(path, os.stat(path).st_mode)  # before the open: opening a device may have effects
        fd = os.open(path, read_flags())
        try:
            check_regular(path, os.fstat(fd).st_mode)  # it may have been swapped since the stat
        except BaseException:
            os.close(fd)
            raise
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return fd

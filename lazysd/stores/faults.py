"""Errors of the system while a result is written, as errors of ours that say what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import LazysdError, NoSpaceError, WriteError

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


def named(error: OSError, place: str | os.PathLike[str]) -> OSError:
    """The error of ours for an error of the system that came up while `place` was written; ours stay as they are."""
    if isinstance(error, LazysdError):
        return error
    ours: OSError
    if error.errno in _FULL:
        ours = NoSpaceError(
            error.errno, f"no space left while writing {place}; free some and run again to go on from there"
        )
    else:
        reason = error.strerror or str(error) or type(error).__name__
        ours = WriteError(error.errno, f"cannot write {error.filename or place}: {reason}")
    for note in getattr(error, "__notes__", ()):
        ours.add_note(note)
    return ours


@contextmanager
def writing(place: str | os.PathLike[str]) -> Iterator[None]:
    """Raise errors of the system inside as WriteError or NoSpaceError about `place`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, LazysdError):
            raise
        raise named(error, place) from error

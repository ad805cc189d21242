"""Open descriptors: few at a time, however many files there are, and none closed under a reader."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from .system import max_open

MOST = 128  # descriptors kept; opening one again costs microseconds
SHARE = 4  # of the process's limit, so that outputs, sockets and the caller have theirs


class Handle:
    """An open descriptor, closed when nobody uses it any more: a reader that meets close() still reads its own file."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int):
        self.fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound: modules may be gone at exit
        close(self.fd)


class Holder(Protocol):
    """A file that may hold a handle."""

    handle: Handle | None


class Handles:
    """The handles that are kept. The one opened first goes first; whoever still reads from it keeps it that long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[weakref.ref[Holder]] = deque()

    def keep(self, holder: Holder) -> None:
        """Note that `holder` has opened its handle, and let go of others beyond the limit."""
        limit = max_open()
        most = MOST if limit < 0 else max(1, min(MOST, limit // SHARE))
        with self._lock:
            self._kept.append(weakref.ref(holder))
            while len(self._kept) > most:
                oldest = self._kept.popleft()()
                if oldest is not None and oldest is not holder:
                    oldest.handle = None

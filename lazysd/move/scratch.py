"""Host memory that is used again. First touches of fresh memory cost several times the copy itself."""

from __future__ import annotations

from bisect import insort
from operator import itemgetter
from typing import Any

import numpy as np


class Scratch:
    """Reused host buffers of one thread."""

    def __init__(self) -> None:
        self._free: list[tuple[int, np.ndarray[Any, Any]]] = []  # (bytes, buffer), smallest first

    def take(self, nbytes: int) -> np.ndarray[Any, Any]:
        """A flat buffer of at least `nbytes` bytes."""
        at = next((k for k, (size, _) in enumerate(self._free) if size >= nbytes), None)
        if at is not None:
            return self._free.pop(at)[1]
        if self._free:  # replace the largest that is too small rather than grow the pool
            self._free.pop()
        return np.empty(max(nbytes, 1), np.uint8)

    def give(self, buffer: np.ndarray[Any, Any]) -> None:
        """Return a buffer for reuse."""
        insort(self._free, (len(buffer), buffer), key=itemgetter(0))

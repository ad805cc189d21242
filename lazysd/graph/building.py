"""Building many nodes at once, without the collector walking over them again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def many_nodes() -> Iterator[None]:
    """Pause the cyclic garbage collector: nodes form no cycles, and walking tens of thousands takes half the time."""
    paused = gc.isenabled()  # whoever pauses it resumes it, so threads that meet here leave it as they found it
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()

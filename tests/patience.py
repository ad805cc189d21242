"""Tests on slow machines: nothing here is timed. What must not hang is interrupted, what must not grow is counted."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FOREVER_SECONDS = 600  # what a broken step would take is hours, or no end at all


def without_progress(said: str) -> str:
    """The text of stderr, less the lines of progress, which a slow machine lets a command print."""
    return re.sub(r"^\w+: \d+% of .* left\n", "", said, flags=re.MULTILINE)


@contextmanager
def not_forever(seconds: int = FOREVER_SECONDS) -> Iterator[None]:
    """TimeoutError in the main thread where a step that takes a moment has no end."""

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def calls_of(work: Callable[[], object]) -> int:
    """How many Python and C functions a piece of work calls: the same on every machine."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count

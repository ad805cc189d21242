"""Peak memory of an action: what the process grew by while it ran."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..arguments import checked

T = TypeVar("T")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SAMPLE_SECONDS = 0.002  # where the kernel's own peak cannot be reset


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


@checked
def assert_peak_memory(action: Callable[[], T], max_nbytes: int) -> T:
    """Run `action` and assert that the process's resident memory never grew by more than `max_nbytes` meanwhile.

    What counts is the whole process: all threads, pages of mapped files too. Call the action once before where caches
    and imports should not count. Linux only.

    >>> from lazysd.testing import assert_peak_memory
    >>> assert_peak_memory(lambda: 1 + 1, max_nbytes=50_000_000)
    2

    Args:
        action: called once, without arguments.
        max_nbytes: bytes of growth that are allowed.

    Returns:
        What the action returns.

    Raises:
        AssertionError: how much it grew. OSError: no /proc.
    """
    gc.collect()  # what earlier work left would be given back meanwhile, and hide as much of the growth
    before = _status("VmRSS")
    try:
        _CLEAR.write_text("5")  # the kernel's high-water mark starts anew
    except OSError:
        result, peak = _sampled(action)
    else:
        result, peak = action(), _status("VmHWM")
    if peak - before > max_nbytes:
        raise AssertionError(f"the process grew by {peak - before:,} bytes, {max_nbytes:,} are allowed")
    return result


def _sampled(action: Callable[[], T]) -> tuple[T, int]:
    peak, done = _status("VmRSS"), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, _status("VmRSS"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = action()
        peak = max(peak, _status("VmRSS"))
    finally:
        done.set()
        watcher.join()
    return result, peak

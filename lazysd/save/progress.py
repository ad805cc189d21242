"""Progress by bytes: a callback of the user's, or a bar on stderr with rate and ETA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def reporter(progress: Any, label: str) -> Iterator[Callable[[int, int], None]]:
    """A function report(done_nbytes, total_nbytes) for `progress`: None or False, True for a bar, or a callable."""
    if not progress:
        yield lambda done, total: None
        return
    if callable(progress):
        yield progress
        return
    from tqdm import tqdm

    bar = tqdm(total=None, unit="B", unit_scale=True, smoothing=0.1, dynamic_ncols=True, mininterval=0.2)

    def report(done: int, total: int) -> None:
        if bar.total is None:
            bar.reset(total)
        bar.update(done - bar.n)

    try:
        yield report
    finally:
        bar.close()

"""Progress by bytes: a callback of the user's, a bar where somebody looks, lines where a log is written."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from ..sizes import format_nbytes

LINE_SECONDS = 5.0  # between two lines of a log; what takes less says nothing


class _Shown(Protocol):
    """What `progress=True` shows. Writing to a stderr that is closed or full is no failure of the work."""

    def __call__(self, done: int, total: int) -> None: ...
    def remark(self, text: str) -> None: ...
    def close(self) -> None: ...


@contextmanager
def reporter(progress: Any, label: str) -> Iterator[Callable[[int, int], None]]:
    """A function report(done_nbytes, total_nbytes) for `progress`: None or False, True for a bar, or a callable.

    The rate is that of this run: what an earlier one had done counts as done, not as work.
    """
    if not progress or callable(progress):
        yield progress or (lambda done, total: None)
        return
    shown: _Shown = _Bar(label) if _is_watched() else _Lines(label)
    try:
        yield shown
    finally:
        shown.close()


def _is_watched() -> bool:
    """Whether stderr can redraw a line: a terminal, or a notebook."""
    return sys.stderr is not None and (sys.stderr.isatty() or _in_notebook())


def _in_notebook() -> bool:
    """Whether this is a kernel's own process; a program that has only imported IPython is none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class _Bar:
    def __init__(self, label: str):
        self.label, self.kept = label, False
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        with suppress(OSError, ValueError):
            if self.bar is None:
                from tqdm import tqdm

                shape = {"unit": "B", "unit_scale": True, "dynamic_ncols": True}
                initial = done if self.kept else 0
                self.bar = tqdm(
                    desc=self.label, total=total, initial=initial, smoothing=0.1, mininterval=0.2, leave=False, **shape
                )
            self.bar.update(done - self.bar.n)

    def remark(self, text: str) -> None:
        self.kept = True
        _say(text)

    def close(self) -> None:
        with suppress(OSError, ValueError):
            if self.bar is not None:
                self.bar.close()


class _Lines:
    def __init__(self, label: str):
        self.label, self.kept = label, False
        self.began = self.said = time.monotonic()
        self.first_nbytes = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.kept:
            self.kept, self.first_nbytes, self.began = False, done, now
        if now - self.said < LINE_SECONDS:
            return
        self.said = now
        rate = (done - self.first_nbytes) / max(now - self.began, 1e-9)
        left = (total - done) / rate if rate else 0
        _say(
            f"{self.label}: {done / max(total, 1):.0%} of {format_nbytes(total)}, {format_nbytes(rate)}/s, "
            f"{left // 60:.0f}:{left % 60:02.0f} left"
        )

    def remark(self, text: str) -> None:
        self.kept = True
        _say(text)

    def close(self) -> None:
        pass


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

"""SIGINT and SIGTERM end the command within a second, in one line, with 130 or 143, whatever it is doing.

The first signal raises KeyboardInterrupt, so that what is open is closed and what is kept can be said. Code that
swallows it, or that does not come back (an import, a slow disk), is not waited for: a thread hears of the signal
through a pipe and ends the process. A save may be killed at any moment, so nothing is lost by that.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

PATIENCE_SECONDS = 0.6
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_AGAIN = "run the same command again to go on"

_asked: signal.Signals | None = None
_said = threading.Lock()  # taken by whoever prints the line


def install() -> None:
    """From here on, for the whole process."""
    hear, tell = os.pipe()
    if hasattr(os, "set_blocking"):  # Windows has it from Python 3.12 on
        os.set_blocking(tell, False)
    threading.Thread(target=_watch, args=(hear,), daemon=True, name="lazysd-signals").start()
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for number in _WORDS:
        signal.signal(number, _handle)


def was_asked() -> bool:
    """Whether a signal has come."""
    return _asked is not None


def code() -> int:
    """The exit code of the signal that came; 130 where KeyboardInterrupt was raised without one."""
    return 128 + (_asked or signal.SIGINT)


def say_interrupted(error: BaseException | None, what: str = _AGAIN) -> int:
    """Print the line, with what is kept as the error's notes tell; returns the exit code."""
    if _asked is None or _said.acquire(blocking=False):
        kept = "; ".join(getattr(error, "__notes__", ())) or what
        _write(f"lazysd: {_WORDS[_asked or signal.SIGINT]}; {kept}\n")
    return code()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def leave(exit_code: int) -> None:
    """End the process: buffers flushed, exit handlers run, threads and modules not waited for."""
    import atexit

    _flush()
    with suppress(BaseException):
        atexit._run_exitfuncs()
    _flush()  # what exit handlers have printed
    os._exit(say_interrupted(None, "the command had ended") if _asked else exit_code)


def _handle(number: int, frame: Any) -> None:
    global _asked
    if _asked is None:
        _asked = signal.Signals(number)
        sys.unraisablehook = lambda unraisable: None  # a callback that swallowed the interrupt would be printed
        raise KeyboardInterrupt
    os._exit(say_interrupted(None))


def _watch(hear: int) -> None:
    """Give the command a moment after a signal, then end it."""
    number = os.read(hear, 1)[0]
    threading.Event().wait(PATIENCE_SECONDS)
    global _asked
    _asked = _asked or signal.Signals(number)
    os._exit(say_interrupted(None))


def _write(line: str) -> None:
    with suppress(OSError, ValueError, RuntimeError):  # closed; closed by Python; interrupted while it was writing
        if threading.current_thread() is threading.main_thread() and sys.stderr is not None:
            sys.stderr.write(line)
            sys.stderr.flush()
        else:  # the main thread may hold the stream for ever
            os.write(2, line.encode("utf-8", "backslashreplace"))

"""Where the `lazysd` command begins: signals are answered from here on, also while the rest is imported."""

from __future__ import annotations

import gc
import os

from . import signals


def run() -> None:
    """Run the command that the shell asked for, and end the process with its exit code."""
    for fd in (0, 1, 2):  # closed ones would be given to the next file that is opened, and be printed into
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's own crew would spin, for nothing
    try:
        signals.install()
        from .main import main

        gc.freeze()  # a short-lived process: what has been imported stays, and an import of torch makes no garbage
        gc.set_threshold(50_000, 20, 20)
        code = main()
    except KeyboardInterrupt as error:  # before a command had begun, or after it had ended
        code = signals.say_interrupted(error)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        if not signals.was_asked():
            raise
        code = signals.say_interrupted(error)
    signals.leave(code)

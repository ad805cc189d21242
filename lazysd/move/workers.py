"""A bounded crew of threads over a stream of jobs. torch copies and preads release the interpreter lock."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar

from ..arguments import shown

T = TypeVar("T")
MAX_HELPERS = 64  # of the whole process; a caller that gets none does its jobs alone


def default_workers() -> int:
    """Threads used when nobody says: the CPUs this process may run on, at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def asked(num_workers: int | None) -> int:
    """Threads that somebody asks for, None for `default_workers()`; no more than there will be. ValueError: none."""
    if num_workers is None:
        return default_workers()
    if num_workers < 1:
        raise ValueError(f"workers must be at least 1, got {shown(num_workers)}")
    return min(num_workers, MAX_HELPERS)


def run(jobs: Iterable[T], work: Callable[[T], Any], num_workers: int) -> None:
    """Call `work` on every job, `num_workers` at a time, taking jobs in order; the first error stops the rest.

    The calling thread is one of the workers; the others are threads that wait for such calls, so that a call costs
    microseconds and they keep their scratch buffers. A worker uses one torch thread, if torch is there when the call
    begins: blocks are small, and torch's own crew, waiting for the next one, would burn the cores that others need.
    """
    call = _Call(jobs, work)
    with _one_torch_thread:
        helpers = [_helpers().submit(call) for _ in range(num_workers - 1)]
        try:
            call()
        finally:
            call.end()
            wait([helper for helper in helpers if not helper.cancel()])
    if call.errors:
        raise call.errors[0]


class _Call:
    """The jobs of one call. Each worker calls it and takes jobs until there are none, or somebody failed."""

    def __init__(self, jobs: Iterable[Any], work: Callable[[Any], Any]) -> None:
        self.errors: list[BaseException] = []
        self._jobs, self._work = iter(jobs), work
        self._lock, self._stop = threading.Lock(), threading.Event()

    def __call__(self) -> None:
        if torch := _torch():
            torch.set_num_threads(
                1
            )  # a thread takes over the setting when torch first runs in it, or keeps an older one
        try:
            while True:
                with self._lock:
                    job = _END if self._stop.is_set() else next(self._jobs, _END)
                if job is _END:
                    return
                self._work(job)
        except BaseException as error:  # noqa: BLE001 - raised again where the call was made
            self.errors.append(error)
            self._stop.set()

    def end(self) -> None:
        """No more jobs. A helper that comes too late finds nothing, and keeps nothing alive while it waits its turn."""
        self._stop.set()
        with self._lock:
            self._jobs = iter(())


_END: Any = object()


def _torch() -> Any:
    """torch, where something in the process has imported it; None where bits alone are moved."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "set_num_threads") else None  # another thread may be at importing it


@cache
def _helpers() -> ThreadPoolExecutor:
    """Threads for all calls together; made when needed, and reused."""
    return ThreadPoolExecutor(MAX_HELPERS, thread_name_prefix="lazysd")


os.register_at_fork(after_in_child=_helpers.cache_clear)  # threads do not survive a fork


class _OneTorchThread:
    """While any crew works, torch uses one thread; the last one to leave sets it back.

    torch.set_num_threads counts for the calling thread and for every thread that has not run torch yet, so what a crew
    sets would stay behind for threads that have nothing to do with it.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nobody is inside: at the beginning, and in a forked child, where whoever was inside does not exist."""
        self._lock, self._inside = threading.Lock(), 0
        self._before: int | None = None  # torch's threads before anybody was inside; None: nobody has asked yet

    def __enter__(self) -> None:
        with self._lock:
            torch = _torch()
            if torch and self._before is None:
                self._before = torch.get_num_threads()
            self._inside += 1
            if torch:
                torch.set_num_threads(1)

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._inside -= 1
            if (torch := _torch()) and self._before is not None:
                torch.set_num_threads(self._before)
            if not self._inside:
                self._before = None


_one_torch_thread = _OneTorchThread()
os.register_at_fork(after_in_child=_one_torch_thread.reset)

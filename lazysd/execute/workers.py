"""A bounded crew of threads over a stream of jobs. torch copies and preads release the interpreter lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def default_workers() -> int:
    """Threads used when nobody says: the CPUs this process may run on, at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def run(jobs: Iterable[T], work: Callable[[T], Any], num_workers: int) -> None:
    """Call `work` on every job, `num_workers` at a time, taking jobs in order; the first error stops the rest.

    With one worker everything runs in the calling thread. A worker uses one torch thread: blocks are small, and torch's
    own crew, waiting for the next one, would burn the cores that others need.
    """
    with _one_torch_thread:
        if num_workers <= 1:
            for job in jobs:
                work(job)
        else:
            _run_crew(iter(jobs), work, num_workers)


def _run_crew(source: Iterator[T], work: Callable[[T], Any], num_workers: int) -> None:
    lock, errors = threading.Lock(), []
    stop = threading.Event()

    def loop() -> None:
        import torch

        torch.set_num_threads(1)  # a thread takes over the setting when torch first runs in it, or keeps an older one
        while not stop.is_set():
            try:
                with lock:
                    job = next(source)
                work(job)
            except StopIteration:
                return
            except BaseException as error:  # noqa: BLE001 - handed to the caller below
                errors.append(error)
                stop.set()

    crew = [threading.Thread(target=loop, name=f"lazysd-{number}", daemon=True) for number in range(num_workers)]
    for thread in crew:
        thread.start()
    try:
        for thread in crew:
            while thread.is_alive():  # a plain join() would hold back Ctrl-C
                thread.join(0.2)
    except BaseException:
        stop.set()
        for thread in crew:
            thread.join()
        raise
    if errors:
        raise errors[0]


class _OneTorchThread:
    """While any crew works, torch uses one thread; the last one to leave sets it back.

    torch.set_num_threads counts for the calling thread and for every thread that has not run torch yet, so what a crew
    sets would stay behind for threads that have nothing to do with it.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, 1

    def __enter__(self) -> None:
        import torch

        with self._lock:
            if not self._inside:
                self._before = torch.get_num_threads()
            self._inside += 1
            torch.set_num_threads(1)

    def __exit__(self, *exc: object) -> None:
        import torch

        with self._lock:
            self._inside -= 1
            torch.set_num_threads(self._before)


_one_torch_thread = _OneTorchThread()

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
    if num_workers <= 1:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for job in jobs:
                work(job)
        finally:
            torch.set_num_threads(before)
        return
    source: Iterator[T] = iter(jobs)
    lock, errors = threading.Lock(), []
    stop = threading.Event()

    def loop() -> None:
        import torch

        torch.set_num_threads(1)
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

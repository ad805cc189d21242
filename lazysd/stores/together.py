"""Waiting for many answers at once, on threads that never keep a process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def together(work: Callable[[T], R], items: Iterable[T], num_threads: int) -> list[R]:
    """The results of `work` on every item, in their order; so many at a time. The first error stops the rest.

    Threads are made for the call, which costs little beside what they wait for, and are daemons: after Ctrl-C nobody
    waits for a server that does not answer.
    """
    wanted = list(enumerate(items))
    if len(wanted) < 2 or num_threads < 2:
        return [work(item) for _, item in wanted]
    results: dict[int, R] = {}
    errors: list[BaseException] = []
    left, lock = iter(wanted), threading.Lock()

    def run() -> None:
        try:
            while not errors:
                with lock:
                    number, item = next(left)
                results[number] = work(item)
        except StopIteration:
            return
        except BaseException as error:  # noqa: BLE001 - raised again where the call was made
            errors.append(error)

    crew = [threading.Thread(target=run, daemon=True) for _ in range(min(num_threads, len(wanted)))]
    for thread in crew:
        thread.start()
    try:
        for thread in crew:
            thread.join()
    except BaseException as error:
        errors.append(error)  # the others stop at their next item
        raise
    if errors:
        raise errors[0]
    return [results[number] for number, _ in wanted]

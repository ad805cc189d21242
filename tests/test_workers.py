"""The crew: jobs in order, the first error stops the rest, and torch's threads are left as they were."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lazysd.move import workers


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_every_job_once(num_workers: int) -> None:
    done: list[int] = []
    workers.run(range(100), done.append, num_workers)
    assert sorted(done) == list(range(100))
    workers.run([], done.append, num_workers)
    assert len(done) == 100


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_first_error_stops_the_rest(num_workers: int) -> None:
    done: list[int] = []

    def work(job: int) -> None:
        if job == 5:
            raise ValueError("job 5")
        done.append(job)

    with pytest.raises(ValueError, match="job 5"):
        workers.run(range(1_000_000), work, num_workers)
    count = len(done)
    assert count < 900_000
    workers.run(range(3), lambda job: None, num_workers)
    assert len(done) == count  # nobody goes on with what was stopped


def test_an_error_of_a_helper_is_raised_where_the_call_was_made() -> None:
    caller = threading.get_ident()

    def work(job: int) -> None:
        if threading.get_ident() != caller:
            raise ValueError("in a helper")
        time.sleep(0.001)

    with pytest.raises(ValueError, match="in a helper"):
        workers.run(range(100_000), work, 2)


def test_an_error_of_the_jobs_themselves() -> None:
    def jobs():  # type: ignore[no-untyped-def]
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        workers.run(jobs(), lambda job: None, 3)


def test_interrupting_waits_for_the_helpers() -> None:
    caller, running, done = threading.get_ident(), threading.Event(), []

    def work(job: int) -> None:
        if threading.get_ident() == caller:
            running.wait(5)
            raise KeyboardInterrupt
        running.set()
        time.sleep(0.05)
        done.append(job)

    with pytest.raises(KeyboardInterrupt):
        workers.run(range(100_000), work, 2)
    assert len(done) == 1


def test_more_workers_than_jobs_and_calls_inside_calls() -> None:
    done: list[int] = []

    def work(job: int) -> None:
        workers.run([job, job], done.append, 3)

    workers.run(range(200), work, 90)
    assert sorted(done) == sorted([*range(200), *range(200)])


def test_a_forked_child_has_helpers_of_its_own() -> None:
    workers.run(range(10), lambda job: None, 3)
    pid = os.fork()
    if pid == 0:
        done: list[int] = []
        workers.run(range(10), done.append, 3)
        os._exit(0 if len(done) == 10 else 1)
    for _ in range(200):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert status == 0
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the child waits for threads that it does not have")


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_torch_s_threads_are_left_as_they_were(num_workers: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen: list[int] = []

        def work(job: int) -> None:
            seen.append(torch.get_num_threads())
            if job == 7:
                raise ValueError("job 7")

        workers.run(range(6), work, num_workers)
        with pytest.raises(ValueError, match="job 7"):
            workers.run([7], work, num_workers)
        assert set(seen) == {1}
        assert (torch.get_num_threads(), threads_of_a_new_thread()) == (3, 3)
    finally:
        torch.set_num_threads(before)


def test_crews_side_by_side_leave_them_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: workers.run(range(50), lambda job: None, 1 + n % 3), range(40)))
        assert threads_of_a_new_thread() == 3
    finally:
        torch.set_num_threads(before)


def test_a_child_forked_in_the_middle_of_a_call_is_free() -> None:
    with workers._one_torch_thread, workers._one_torch_thread._lock:
        pid = os.fork()
        if pid == 0:
            workers.run(range(3), lambda job: None, 2)
            os._exit(0)
    for _ in range(200):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert status == 0
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the child waits for a lock that nobody will release")

"""The crew: jobs in order, the first error stops the rest, and torch's threads are left as they were."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lazysd.execute import workers


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
        workers.run(range(10_000), work, num_workers)
    assert len(done) < 9_000
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lazysd-")]


def test_an_error_of_the_jobs_themselves() -> None:
    def jobs():  # type: ignore[no-untyped-def]
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        workers.run(jobs(), lambda job: None, 3)


def test_interrupting_waits_for_the_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    started, join = threading.Event(), threading.Thread.join

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        if timeout is not None and started.wait(5):
            raise KeyboardInterrupt
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workers.run(range(100_000), lambda job: started.set(), 2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lazysd-")]


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

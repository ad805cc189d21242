"""Carry out a plan: workers fill buffers and write them where they belong; the folder makes it durable and visible."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import MemoryBudgetError
from ..move import workers
from ..move.fill import fill
from ..sizes import format_nbytes
from ..stores import crc
from ..stores.faults import writing
from ..stores.output_folder import OutputFolder
from ..stores.shard_file import PAGE_NBYTES, ShardFile
from .jobs import Job, Part, Shard
from .plan import Plan

Buffer = np.ndarray[Any, Any]  # bytes


class Share(NamedTuple):
    """Which of several processes this one is; shards are dealt out in turn."""

    rank: int
    world_size: int


class _Open:
    """A shard being written, and the checksums of its tensors so far: 4 bytes each, once a tensor is whole."""

    def __init__(self, shard: Shard, file: ShardFile):
        self.shard, self.file = shard, file
        self.jobs_left = 1  # one stands for handing them out
        self.checksums = bytearray(4 * shard.num_targets)
        self._parts: dict[int, dict[int, tuple[int, int]]] = {}  # tensor -> offset -> (nbytes, crc32)

    def note(self, part: Part, offset: int, checksum: int) -> None:
        """The checksum of a part that lies at an offset of the file."""
        if part.nbytes == part.target.node.nbytes:
            self._put(part.number, checksum)
        elif part.nbytes:
            self._parts.setdefault(part.number, {})[offset] = (part.nbytes, checksum)

    def close_sums(self) -> None:
        """Put together what is known of each tensor, once all parts are noted."""
        for number, parts in self._parts.items():
            total = 0
            for _, (nbytes, checksum) in sorted(parts.items()):
                total = crc.combine(total, checksum, nbytes)
            self._put(number, total)

    def sums(self) -> list[int]:
        """The checksum of each tensor."""
        return [int.from_bytes(self.checksums[at : at + 4], "big") for at in range(0, len(self.checksums), 4)]

    def whole(self) -> int:
        """The checksum of the whole file."""
        sums = self.sums()
        around = ((offset, len(piece), crc.crc32(piece)) for offset, piece in self.shard.around(sums))
        tensors = (
            (target.offset, target.node.nbytes, checksum)
            for target, checksum in zip(self.shard.targets, sums, strict=True)
        )
        total = 0
        for _, nbytes, checksum in heapq.merge(around, (tensor for tensor in tensors if tensor[1])):
            total = crc.combine(total, checksum, nbytes)
        return total

    def _put(self, number: int, checksum: int) -> None:
        self.checksums[4 * number : 4 * number + 4] = checksum.to_bytes(4, "big")


class Save:
    """One run of a plan. Thread-safe where workers meet: opening and finishing shards, counting progress."""

    def __init__(self, plan: Plan, folder: OutputFolder, report: Callable[[int, int], None], share: Share):
        self.plan, self.folder, self.report = plan, folder, report
        self.shards = [n for n in range(len(plan.shards)) if n % share.world_size == share.rank]
        self.lock = threading.Lock()
        self.computing = threading.Semaphore(plan.workers)  # one thread more than that: it computes while one writes
        self.open: dict[int, _Open] = {}
        self.buffers: list[Buffer] = []  # output buffers that no thread uses at the moment
        self.total_nbytes = sum(_data_nbytes(plan.shards[number]) for number in self.shards)
        self.done_nbytes = 0

    def run(self) -> None:
        """Write the shards of this share that are not finished yet.

        Raises:
            MemoryBudgetError: the machine has less memory than the plan was allowed.
        """
        left = [number for number in self.shards if self.plan.shards[number].name not in self.folder.finished]
        if kept_nbytes := self.total_nbytes - sum(_data_nbytes(self.plan.shards[number]) for number in left):
            self._advance(kept_nbytes)
        if self.plan.calculates:
            import torch  # noqa: F401 - before the crew begins, which has it use one thread each
        try:
            workers.run(self._jobs(left), self._work, self.plan.threads)
        except (MemoryError, RuntimeError) as error:
            if not (isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)):
                raise
            raise MemoryBudgetError(
                f"this machine has no {format_nbytes(self.plan.peak_nbytes)} of memory left, which max_memory "
                f"{format_nbytes(self.plan.max_memory)} allows; allow less, {format_nbytes(self.plan.smallest_nbytes)} "
                "would do"
            ) from error
        finally:
            self.buffers.clear()
            for opened in self.open.values():
                opened.file.close()

    def _jobs(self, numbers: list[int]) -> Any:
        """Jobs, each with its shard opened; a shard's jobs are counted so that the last one finishes it."""
        for number in numbers:
            shard = self.plan.shards[number]
            opened = _Open(shard, self.folder.open_shard(shard.name, shard.nbytes))
            with self.lock:
                self.open[number] = opened
            for job in self.plan.jobs_of(number):
                with self.lock:
                    opened.jobs_left += 1
                yield job
            self._job_done(number, opened)

    def _work(self, job: Job) -> None:
        opened, sums, at = self.open[job.shard], [], 0
        held = self._buffer(job.nbytes + PAGE_NBYTES)
        address = held.__array_interface__["data"][0]
        start = (job.parts[0].offset - address) % PAGE_NBYTES  # memory and file agree modulo a page, see ShardFile
        view = held.data[start : start + job.nbytes]
        with self.computing:
            if job.nbytes:
                fill(held, job.wanted(start), exact=True)
            for part in job.parts:
                sums.append((part, part.offset, crc.crc32(view[at : at + part.nbytes])))
                at += part.nbytes
        with writing(self.folder.building):
            for begun, offset, nbytes in job.runs():
                opened.file.write(view[begun : begun + nbytes], offset)
        self.buffers.append(held)
        with self.lock:
            for noted in sums:
                opened.note(*noted)
        self._job_done(job.shard, opened)
        self._advance(job.nbytes)

    def _buffer(self, nbytes: int) -> Buffer:
        """An output buffer; one that is too small goes before another comes, so there are as many as threads."""
        try:
            held = self.buffers.pop()
        except IndexError:
            held = np.empty(0, np.uint8)
        if len(held) < nbytes:
            del held
            held = np.empty(nbytes, np.uint8)
        return held

    def _job_done(self, number: int, opened: _Open) -> None:
        """One of a shard's jobs is done; after the last one, put the checksums together and hand the shard over."""
        with self.lock:
            opened.jobs_left -= 1
            if opened.jobs_left:
                return
            del self.open[number]
        opened.close_sums()
        around = opened.shard.around(opened.sums())
        self.folder.finish_shard(opened.shard.name, opened.file, around, opened.whole(), bytes(opened.checksums))

    def _advance(self, nbytes: int) -> None:
        with self.lock:
            self.done_nbytes += nbytes
            try:
                self.report(self.done_nbytes, self.total_nbytes)
            except OSError as error:
                self.folder.passes_on = error  # the caller's own, no fault of the folder's
                raise


def _data_nbytes(shard: Shard) -> int:
    return shard.nbytes - shard.around_nbytes

"""Carry out a plan: workers fill buffers and write them where they belong; the writer makes it durable and visible."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import dtypes
from .._version import __version__
from ..formats.safetensors.index import format_index
from ..move import workers
from ..move.fill import fill
from ..stores import crc
from ..stores.base import File
from ..stores.local import LocalFile
from ..stores.output_folder import OutputFolder, check_apart
from ..stores.shard_file import PAGE_NBYTES, ShardFile
from .jobs import Job, Shard, digest, reads_memory, source_files
from .plan import Plan
from .progress import reporter

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

MANIFEST = "lazysd.manifest.json"
_ENTRY_NBYTES = 400  # of a tensor's line in manifest and index, generously


class Share(NamedTuple):
    """Which of several processes this one is; shards are dealt out in turn."""

    rank: int
    world_size: int


class _Open:
    """A shard being written."""

    def __init__(self, shard: Shard, jobs_left: int, file: ShardFile):
        self.shard, self.jobs_left, self.file = shard, jobs_left, file
        self.checksums: dict[int, tuple[int, int]] = {}  # offset in the file -> (nbytes, crc32)


class Save:
    """One run of a plan. Thread-safe where workers meet: opening and finishing shards, counting progress."""

    def __init__(self, plan: Plan, folder: OutputFolder, report: Callable[[int, int], None], share: Share):
        self.plan, self.folder, self.report = plan, folder, report
        self.shards = [n for n in range(len(plan.shards)) if n % share.world_size == share.rank]
        self.lock = threading.Lock()
        self.computing = threading.Semaphore(plan.workers)  # one thread more than that: it computes while one writes
        self.open: dict[int, _Open] = {}
        self.buffers: list[torch.Tensor] = []  # output buffers that no thread uses at the moment
        self.total_nbytes = sum(target.node.nbytes for n in self.shards for target in plan.shards[n].targets)
        self.done_nbytes = 0

    def run(self) -> None:
        skip = frozenset(shard.name for shard in self.plan.shards if shard.name in self.folder.finished)
        for shard in (self.plan.shards[number] for number in self.shards):
            if shard.name in skip:
                self._advance(shard.nbytes - len(shard.header))
        try:
            workers.run(self._numbered(skip), self._work, self.plan.threads)
        finally:
            self.buffers.clear()
            for opened in self.open.values():
                opened.file.close()

    def _numbered(self, skip: frozenset[str]) -> Any:
        """Jobs, each with its shard opened; a shard's jobs are counted so that the last one finishes it."""
        for number in self.shards:
            shard = self.plan.shards[number]
            if shard.name in skip:
                continue
            jobs = list(self.plan.jobs_of(number))
            opened = _Open(shard, len(jobs), self.folder.open_shard(shard.name, shard.nbytes))
            with self.lock:
                self.open[number] = opened
            if not jobs:
                self._finish(number, opened)
            yield from jobs

    def _work(self, job: Job) -> None:
        opened, sums, at = self.open[job.shard], [], 0
        held = self._buffer(job.nbytes + PAGE_NBYTES)
        start = (job.offset - held.data_ptr()) % PAGE_NBYTES  # memory and file agree modulo a page, see ShardFile
        buffer = held[start : start + job.nbytes]
        view = memoryview(_array(buffer))
        with self.computing:
            if job.nbytes:
                target = buffer.view(dtypes.to_torch(job.parts[0].target.node.code))
                fill(target, job.wanted(int(buffer.storage_offset())), exact=True)
            for part in job.parts:
                sums.append((job.offset + at, part.nbytes, zlib.crc32(view[at : at + part.nbytes])))
                at += part.nbytes
        opened.file.write(view, job.offset)
        self.buffers.append(held)
        with self.lock:
            for offset, nbytes, checksum in sums:
                if nbytes:
                    opened.checksums[offset] = (nbytes, checksum)
            opened.jobs_left -= 1
            last = opened.jobs_left == 0
        if last:
            self._finish(job.shard, opened)
        self._advance(job.nbytes)

    def _buffer(self, nbytes: int) -> torch.Tensor:
        """An output buffer; one that is too small goes before another comes, so there are as many as threads."""
        try:
            held = self.buffers.pop()
        except IndexError:
            held = torch.empty(0, dtype=torch.uint8)
        if held.numel() < nbytes:
            del held
            held = torch.empty(nbytes, dtype=torch.uint8)
        return held

    def _finish(self, number: int, opened: _Open) -> None:
        """Put the parts' checksums together and hand the shard over."""
        shard = opened.shard
        tensors: dict[str, int] = {}
        whole = zlib.crc32(shard.header)
        for target in shard.targets:
            at, end, total = target.offset, target.offset + target.node.nbytes, 0
            while at < end:
                nbytes, checksum = opened.checksums[at]
                total = crc.combine(total, checksum, nbytes)
                at += nbytes
            tensors[target.key] = total
            whole = crc.combine(whole, total, target.node.nbytes)
        with self.lock:
            del self.open[number]
        self.folder.finish_shard(shard.name, opened.file, shard.header, whole, tensors)

    def _advance(self, nbytes: int) -> None:
        with self.lock:
            self.done_nbytes += nbytes
            self.report(self.done_nbytes, self.total_nbytes)


def _array(buffer: torch.Tensor) -> Any:
    return buffer.numpy()


def save(
    checkpoint: Checkpoint,
    plan: Plan,
    dst: str | os.PathLike[str],
    overwrite: bool = False,
    resume: bool = True,
    progress: Any = None,
) -> None:
    """Write what `plan` lays out to folder `dst`. See Checkpoint.save."""
    place = Path(os.path.expanduser(os.fsdecode(dst)))
    with output_folder(checkpoint, plan, place, overwrite, resume) as folder, reporter(progress) as report:
        Save(plan, folder, report, Share(0, 1)).run()
        finish(checkpoint, plan, folder)


def output_folder(checkpoint: Checkpoint, plan: Plan, dst: Path, overwrite: bool, resume: bool) -> OutputFolder:
    """The folder a plan is written to, once it is sure that it does not touch the source."""
    found = (*checkpoint.files, *source_files(plan.shards))
    files = {file.path for file in found if isinstance(file, LocalFile)}
    root = checkpoint.path if isinstance(checkpoint.path, Path) else None
    check_apart(dst, root, sorted(files))
    sides = sum(file.size for file in _side_files(checkpoint, plan))
    nbytes = plan.write_nbytes + sides + _ENTRY_NBYTES * plan.num_tensors
    volatile = reads_memory(plan.shards)
    return OutputFolder(dst, digest(plan.shards), nbytes, overwrite, resume, volatile)


def finish(checkpoint: Checkpoint, plan: Plan, folder: OutputFolder) -> None:
    """All shards are there: check the sources once more, write what stands beside the shards, make it appear."""
    for file in source_files(plan.shards):  # the plan's, which a composed checkpoint need not list
        file.check_unchanged()
    folder.copy_files(_side_files(checkpoint, plan))
    for name, content in checkpoint.facts.json_files.items():
        folder.write_file(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    folder.write_file(MANIFEST, _manifest(checkpoint, plan, folder))
    if len(plan.shards) > 1:
        weight_map = {target.key: shard.name for shard in plan.shards for target in shard.targets}
        num_parameters = sum(target.node.numel() for shard in plan.shards for target in shard.targets)
        stem = plan.shards[0].name.split("-00001-of-")[0]
        index = format_index(weight_map, plan.tensor_nbytes, num_parameters)
        folder.write_file(f"{stem}.safetensors.index.json", index)
    folder.commit()


def _side_files(checkpoint: Checkpoint, plan: Plan) -> list[File]:
    """Files to copy: those beside the source that the save does not write itself."""
    written = {shard.name for shard in plan.shards} | {MANIFEST, *checkpoint.facts.json_files}
    return [file for file in checkpoint.facts.side_files if file.name not in written]


def _manifest(checkpoint: Checkpoint, plan: Plan, folder: OutputFolder) -> bytes:
    """What was written: every tensor's place and checksum, the plan's fingerprint, the versions."""
    tensors = {
        target.key: {
            "dtype": target.node.code,
            "shape": list(target.node.dims),
            "shard": shard.name,
            "crc32": f"{folder.finished[shard.name]['tensors'][target.key]:08x}",
        }
        for shard in plan.shards
        for target in shard.targets
    }
    content = {
        "lazysd": __version__,
        "torch": str(torch.__version__),
        "layout": checkpoint.layout,
        "family": checkpoint.family,
        "plan": folder.digest,
        "lossy": list(plan.lossy),
        "shards": {shard.name: f"{folder.finished[shard.name]['crc32']:08x}" for shard in plan.shards},
        "tensors": tensors,
    }
    return (json.dumps(content, indent=1) + "\n").encode()

"""One save by several processes: each writes its share of the shards, rank 0 makes the result appear.

Under torchrun, `python -m lazysd convert` does this by itself. All ranks must see one file system.

No rank ever waits for one that failed: every phase ends with all ranks telling each other how it went, a rank that
fails while it writes leaves a mark that stops the others at their next job, and a rank that is killed breaks the
connections that the others wait on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ..arguments import checked
from ..errors import WriteError
from ..move import workers
from ..save.plan import Plan
from ..save.progress import reporter
from ..save.run import Save, Share
from ..save.saving import finish, output_folder
from ..stores.faults import named
from ..stores.output_folder import OutputFolder

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

_FAILED = ".lazysd-failed"  # in the folder being built: some rank gave up; a rerun clears it away
_MEETING = timedelta(minutes=5)  # for all ranks to start
_PATIENCE = timedelta(days=2)  # for the slowest share; a rank that is gone is noticed at once


def world() -> Share:
    """This process among those that torchrun started; (0, 1) outside of it."""
    return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@checked
def save(
    checkpoint: Checkpoint,
    dst: str | os.PathLike[str],
    max_shard_size: int | str = "5GB",
    max_memory: int | str = "128MB",
    workers_per_rank: int | None = None,
    overwrite: bool = False,
    resume: bool = True,
    progress: bool | Callable[[int, int], None] | None = None,
    format: str = "safetensors",
) -> Plan:
    """Write the checkpoint to folder `dst` with all ranks of the default process group.

    Every rank calls it with equal arguments, reads what its own shards take and stays within `max_memory`. Shards are
    dealt out in turn, so choose `max_shard_size` to give every rank some. The bytes are those of a save by one process.
    A process group over gloo is made, and ended, where there is none.

        # torchrun --nproc-per-node 4 script.py
        ckpt = lazysd.open("Qwen3-30B-A3B").convert("nemo")
        lazysd.distributed.save(ckpt, "Qwen3-30B-A3B-nemo", max_shard_size="2GB")

    Args:
        dst, max_shard_size, max_memory, overwrite, resume, format: as in Checkpoint.save.
        workers_per_rank: threads of each rank; None shares out this machine's CPUs.
        progress: as in Checkpoint.save, for the share of rank 0; the others are silent.

    Returns:
        The plan, the same on every rank; `dst` is complete.

    Raises:
        WriteError: on the ranks that had to stop because another one failed; names it. `dst` is not there, finished
            shards are kept, and a rerun goes on. The rank that failed raises what Checkpoint.save does.
    """
    made_here = not dist.is_initialized()
    if made_here:
        dist.init_process_group("gloo", timeout=_MEETING)
    try:
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        ranks = _Ranks(group, os.fsdecode(dst))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks.share.world_size)))
        crew = workers_per_rank or max(1, workers.default_workers() // local)
        plan, folder = ranks.same_plan(
            lambda: checkpoint.plan(max_shard_size, max_memory, crew, format),
            lambda plan: output_folder(checkpoint, plan, Path(os.path.expanduser(ranks.dst)), overwrite, resume),
        )
        with reporter(progress if ranks.share.rank == 0 else None, "save") as report:
            _write(ranks, checkpoint, plan, folder, report)
        if not made_here:
            dist.destroy_process_group(group)
        return plan
    finally:
        if made_here:
            dist.destroy_process_group()


def _write(ranks: _Ranks, checkpoint: Checkpoint, plan: Plan, folder: OutputFolder, report: Any) -> None:
    """Rank 0 holds the folder's lock from beginning to end; the others write into it."""
    leads = ranks.share.rank == 0
    with ExitStack() as held:
        told = ranks.end_phase(
            *_attempt(lambda: (held.enter_context(folder).finished, folder.claim.token) if leads else None)
        )
        folder.finished, folder.claim.token = dict(told[0][0]), told[0][1]

        def write() -> None:
            Save(plan, folder, _stopping(folder, report), ranks.share).run()
            for file in plan.sources:
                file.check_unchanged()

        _, problem = _attempt(write)
        if problem is not None:
            _mark(folder)
        for finished in ranks.end_phase(folder.finished, _named(problem, folder)):
            folder.finished.update(finished)
        ranks.end_phase(*_attempt(lambda: finish(checkpoint, plan, folder) if leads else None))


class _Ranks:
    """The processes of a save, and how they hear of each other's failures."""

    def __init__(self, group: Any, dst: str):
        self.group, self.dst = group, dst
        self.share = Share(dist.get_rank(), dist.get_world_size())

    def end_phase(self, said: Any, problem: BaseException | None) -> list[Any]:
        """What every rank has to say, in order. Raises this rank's problem, or WriteError about another's."""
        told: list[Any] = [None] * self.share.world_size
        try:
            dist.all_gather_object(told, (said, None if problem is None else _line(problem)), group=self.group)
        except RuntimeError as error:  # gloo: a connection closed
            if problem is None or isinstance(problem, _Stopped):
                problem = WriteError(f"{self.dst} was not made: another rank is gone; run again to go on from there")
            raise problem from error
        if problem is not None and not isinstance(problem, _Stopped):
            raise problem
        failed = [(rank, line) for rank, (_, line) in enumerate(told) if line]
        if failed or problem is not None:
            rank, line = failed[0] if failed else ("another one", "")
            raise WriteError(f"{self.dst} was not made, because rank {rank} failed: {line}")
        return [said for said, _ in told]

    def same_plan(self, plan: Callable[[], Plan], place: Callable[[Plan], OutputFolder]) -> tuple[Plan, OutputFolder]:
        """The plan and its folder, once all ranks have made the same one."""

        def both() -> tuple[Plan, OutputFolder]:
            made = plan()
            return made, place(made)

        made: tuple[Plan, OutputFolder]
        made, problem = _attempt(both)
        digests = self.end_phase(made and made[1].digest, problem)
        odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if odd:
            raise WriteError(
                f"{self.dst} was not made: rank {odd[0]} would write another plan than rank 0; "
                "all ranks must open the same files (not tensors in memory), by the same path, with the same options"
            )
        return made


class _Stopped(Exception):
    """This rank stopped because another one failed."""


def _attempt(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except BaseException as problem:  # noqa: BLE001 - raised again once the other ranks know
        return None, problem


def _stopping(folder: OutputFolder, report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """`report`, which first looks whether another rank has given up."""
    mark = folder.building / _FAILED

    def look(done_nbytes: int, total_nbytes: int) -> None:
        if mark.exists():
            raise _Stopped
        report(done_nbytes, total_nbytes)

    return look


def _mark(folder: OutputFolder) -> None:
    try:
        (folder.building / _FAILED).touch()
    except OSError:
        return  # the folder is gone or full: the others will hear at the end of their share


def _named(problem: BaseException | None, folder: OutputFolder) -> BaseException | None:
    """The problem as leaving the folder would raise it: errors of the system get a name of ours."""
    return named(problem, folder.building) if isinstance(problem, OSError) else problem


def _line(problem: BaseException) -> str:
    """One line about a problem; empty where it only repeats another rank's."""
    return "" if isinstance(problem, _Stopped) else " ".join(f"{problem}".split()) or type(problem).__name__

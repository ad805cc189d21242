"""A save by several processes: the bytes of one; a rank that dies leaves no destination, and the rerun goes on."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch.distributed as dist
from checkpoints import random_hf, write
from gloo import run_ranks
from patience import FOREVER_SECONDS, not_forever

import lazysd
from lazysd import distributed
from lazysd.errors import LayoutError, NoSpaceError, OutputExistsError, SourceChangedError, WriteError
from lazysd.stores.base import File
from lazysd.stores.local import LocalFile
from lazysd.stores.output_folder import OutputFolder

pytestmark = pytest.mark.dist
SHARDS = ("--to", "nemo", "--max-shard-size", "20KB")


def torchrun(nproc: int, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={nproc}", "--standalone"]
    return subprocess.run(
        [*command, "-m", "lazysd", *map(str, args)], capture_output=True, text=True, env={**os.environ, **env}
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def alone(golden: Path, tmp_path: Path) -> dict[str, bytes]:
    args = [sys.executable, "-m", "lazysd", "convert", str(golden / "qwen3_moe_tiny"), str(tmp_path / "alone"), *SHARDS]
    subprocess.run(args, check=True, capture_output=True)
    return files(tmp_path / "alone")


@pytest.mark.parametrize("nproc", [2, 3])
def test_the_same_bytes_as_one_process(golden: Path, tmp_path: Path, alone: dict[str, bytes], nproc: int) -> None:
    done = torchrun(nproc, "convert", golden / "qwen3_moe_tiny", tmp_path / "out", *SHARDS, "--verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("verified:") == 1  # one rank speaks
    assert files(tmp_path / "out") == alone


DIES_IN_ITS_SECOND_SHARD = (
    "import os\n"
    "if os.environ.get('RANK') == '1':\n"
    "    import lazysd.stores.output_folder as writer\n"
    "    done, finish = [], writer.OutputFolder.finish_shard\n"
    "    def once(self, *args):\n"
    "        if done: os._exit(9)\n"
    "        done.append(finish(self, *args))\n"
    "    writer.OutputFolder.finish_shard = once\n"
)


def patched(tmp_path: Path, code: str) -> str:
    """A PYTHONPATH under which every interpreter runs `code` first."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(code)
    return os.pathsep.join([str(tmp_path / "patch"), os.getcwd(), os.environ.get("PYTHONPATH", "")])


def test_a_rank_that_dies_leaves_nothing_and_the_rerun_goes_on(
    golden: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    path = patched(tmp_path, DIES_IN_ITS_SECOND_SHARD)
    died = torchrun(2, "convert", golden / "qwen3_moe_tiny", tmp_path / "out", *SHARDS, PYTHONPATH=path)
    assert died.returncode != 0
    assert not (tmp_path / "out").exists()
    kept = tmp_path / ".out.lazysd-partial" / "model-00002-of-00005.safetensors"  # rank 1's first
    inode = kept.stat().st_ino
    done = torchrun(2, "convert", golden / "qwen3_moe_tiny", tmp_path / "out", *SHARDS)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == alone
    assert (tmp_path / "out" / kept.name).stat().st_ino == inode


def test_rank_0_s_refusal_ends_all_ranks(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "here").write_text("first")
    done = torchrun(2, "convert", golden / "qwen3_moe_tiny", tmp_path / "out", *SHARDS)
    assert done.returncode != 0
    assert "exists; choose another destination" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["here"]


def test_without_torchrun_the_others_end_too(golden: Path, tmp_path: Path, alone: dict[str, bytes]) -> None:
    """Nobody ends the survivors of a rank that dies; they notice, and each says so in one line."""
    with socket.socket() as held:
        held.bind(("localhost", 0))
        port = held.getsockname()[1]
    path = patched(tmp_path, DIES_IN_ITS_SECOND_SHARD)
    command = [
        sys.executable,
        "-m",
        "lazysd",
        "convert",
        str(golden / "qwen3_moe_tiny"),
        str(tmp_path / "out"),
        *SHARDS,
    ]
    crew = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {
            "RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
            "PYTHONPATH": path,
        })
        for rank in range(3)
    ]  # fmt: skip
    said = [process.communicate(timeout=100) for process in crew]
    assert [process.returncode for process in crew] == [4, 9, 4]
    for rank in (0, 2):
        line = [line for line in said[rank][1].splitlines() if line.startswith("lazysd: ")]
        assert line == [f"lazysd: {tmp_path / 'out'} was not made: another rank is gone; run again to go on from there"]
    assert not (tmp_path / "out").exists()
    kept = tmp_path / ".out.lazysd-partial" / "model-00002-of-00005.safetensors"  # rank 1's first
    inode = kept.stat().st_ino
    subprocess.run(command, check=True, capture_output=True)  # one process goes on where three stopped
    assert files(tmp_path / "out") == alone
    assert (tmp_path / "out" / kept.name).stat().st_ino == inode


# What each rank runs, in processes that live on after an error: whoever waits for another rank would hang here.

PLAN: dict[str, Any] = {"max_shard_size": 2000, "workers_per_rank": 1}


def opened(folder: Path) -> lazysd.Checkpoint:
    if dist.get_rank() == 0:
        write(folder / "hf", random_hf(6, 16, 8, 4), shards=2, config={"model_type": "qwen3_moe", "num_experts": 6})
        lazysd.open(folder / "hf").convert("nemo").save(folder / "alone", max_shard_size=2000)
    dist.barrier()
    return lazysd.open(folder / "hf").convert("nemo")


def assert_made(folder: Path, name: str = "out") -> None:
    assert files(folder / name) == files(folder / "alone")
    assert not list(folder.glob(".out*"))


def failing(owner: Any, name: str, error: BaseException, rank: int, after: int = 0) -> Any:
    """A patch: on `rank`, the method raises from its call number `after` on."""
    real, calls = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        if dist.get_rank() == rank and len(calls) >= after:
            raise error
        calls.append(0)
        return real(*args, **kwargs)

    return patch.object(owner, name, call)


def all_ranks_write_one_checkpoint(folder: Path) -> None:
    ckpt = opened(folder)
    seen: list[tuple[int, int]] = []
    plan = distributed.save(ckpt, folder / "out", progress=lambda *at: seen.append(at), **PLAN)
    assert len(plan.shards) > 2 * dist.get_world_size()
    assert bool(seen) == (dist.get_rank() == 0)
    assert all(done <= total for done, total in seen)
    assert_made(folder)
    with pytest.raises(OutputExistsError if dist.get_rank() == 0 else WriteError, match="exists; choose another"):
        distributed.save(ckpt, folder / "out", **PLAN)
    assert_made(folder)
    dist.barrier()
    distributed.save(ckpt, folder / "out", overwrite=True, **PLAN)
    assert_made(folder)
    distributed.save(ckpt, folder / "one", workers_per_rank=1)  # fewer shards than ranks
    assert [path.name for path in (folder / "one").glob("*.safetensors")] == ["model.safetensors"]


def whoever_fails_and_whenever(folder: Path) -> None:
    ckpt, last = opened(folder), dist.get_world_size() - 1
    full = OSError(errno.ENOSPC, "No space left on device")
    cases = [
        (lazysd.Checkpoint, "plan", LayoutError("no such plan"), last, 0, LayoutError, "no such plan"),
        (lazysd.Checkpoint, "plan", LayoutError("no such plan"), 0, 0, LayoutError, "no such plan"),
        (OutputFolder, "__enter__", OutputExistsError("it is there"), 0, 0, OutputExistsError, "it is there"),
        (OutputFolder, "open_shard", full, last, 0, NoSpaceError, "no space left while writing"),
        (OutputFolder, "finish_shard", full, last, 1, NoSpaceError, "no space left while writing"),
        (OutputFolder, "finish_shard", full, 0, 1, NoSpaceError, "[Nn]o space left"),
        (File, "read", KeyboardInterrupt(), last, 3, KeyboardInterrupt, ""),
        (LocalFile, "check_unchanged", SourceChangedError("it changed"), last, 0, SourceChangedError, "it changed"),
        (OutputFolder, "write_file", full, 0, 0, NoSpaceError, "[Nn]o space left"),
        (OutputFolder, "commit", WriteError("read-only"), 0, 0, WriteError, "read-only"),
    ]  # fmt: skip
    for owner, name, error, rank, after, kind, message in cases:
        mine = dist.get_rank() == rank
        raised = pytest.raises(kind if mine else WriteError)
        with failing(owner, name, error, rank, after), not_forever(), raised as caught:
            distributed.save(ckpt, folder / "out", resume=False, **PLAN)
        text = message if mine else rf"out was not made, because rank {rank} failed: .*({message}|{kind.__name__})"
        caught.match(text)
        assert not (folder / "out").exists()
        dist.barrier()
    distributed.save(ckpt, folder / "out", **PLAN)
    assert_made(folder)


def finished_shards_of_all_ranks_are_kept(folder: Path) -> None:
    """Rank 0 fails in its first shard, when the others have finished some: those are not done again."""
    ckpt, partial = opened(folder), folder / ".out.lazysd-partial"
    finish, mine = OutputFolder.finish_shard, []

    def finish_shard(self: OutputFolder, name: str, *args: Any) -> None:
        if dist.get_rank() == 0:
            waited = time.monotonic()
            while (
                not list(partial.glob("model-00002-of-*.safetensors")) and time.monotonic() - waited < FOREVER_SECONDS
            ):
                time.sleep(0.01)
            raise LayoutError("rank 0 gives up")
        finish(self, name, *args)
        mine.append(name)

    with patch.object(OutputFolder, "finish_shard", finish_shard), pytest.raises((LayoutError, WriteError)):
        distributed.save(ckpt, folder / "out", **PLAN)
    dist.barrier()
    kept = {path.name: path.stat().st_ino for path in partial.glob("*.safetensors")}
    assert any(name.startswith("model-00002-of-") for name in kept)
    dist.barrier()
    distributed.save(ckpt, folder / "out", **PLAN)
    assert_made(folder)
    assert {name: (folder / "out" / name).stat().st_ino for name in kept} == kept


def the_others_stop_at_their_next_job(folder: Path) -> None:
    ckpt, partial = opened(folder), folder / ".out.lazysd-partial"
    finish, finished, last = OutputFolder.finish_shard, [], dist.get_world_size() - 1

    def finish_shard(self: OutputFolder, name: str, *args: Any) -> None:
        if dist.get_rank() == last:
            raise LayoutError("gives up at once")
        until = time.monotonic() + FOREVER_SECONDS
        while not (partial / ".lazysd-failed").exists() and time.monotonic() < until:
            time.sleep(0.01)
        finish(self, name, *args)
        finished.append(name)

    with patch.object(OutputFolder, "finish_shard", finish_shard), pytest.raises((LayoutError, WriteError)) as caught:
        distributed.save(ckpt, folder / "out", **PLAN)
    assert "gives up at once" in str(caught.value)
    assert len(finished) <= 1
    dist.barrier()
    distributed.save(ckpt, folder / "out", **PLAN)
    assert_made(folder)


def ranks_that_disagree_are_told(folder: Path) -> None:
    ckpt = opened(folder)
    size = 2000 if dist.get_rank() == 0 else 50_000
    with pytest.raises(WriteError, match="rank 1 would write another plan than rank 0"):
        distributed.save(ckpt, folder / "out", max_shard_size=size)
    assert not list(folder.glob("*out*"))


def disks_that_are_not_shared(folder: Path) -> None:
    """A path that is another folder on each node: what the last rank wrote is nowhere that rank 0 could find it."""
    ckpt, last = opened(folder), dist.get_world_size() - 1
    own = folder / "node"
    saving = sys.modules[distributed.save.__module__]  # the package has a function of the module's name
    real = saving.output_folder  # type: ignore[attr-defined]

    def elsewhere(*args: Any) -> OutputFolder:
        made: OutputFolder = real(*args)
        if dist.get_rank() == last:
            own.mkdir(exist_ok=True)
            made.building, made._journal.path = own, own / made._journal.path.name
            made._journal.begin(made.digest, {}, {})
            made.claim.folder = own
        return made

    with (
        patch.object(saving, "output_folder", elsewhere),
        pytest.raises(WriteError, match="do the processes that save see different disks"),
    ):
        distributed.save(ckpt, folder / "out", **PLAN)
    assert not (folder / "out").exists()
    assert dist.get_rank() != last or list(own.glob("*.safetensors"))
    dist.barrier()
    distributed.save(ckpt, folder / "out", **PLAN)
    assert_made(folder)


SCENARIOS = [
    disks_that_are_not_shared,
    all_ranks_write_one_checkpoint,
    whoever_fails_and_whenever,
    finished_shards_of_all_ranks_are_kept,
    the_others_stop_at_their_next_job,
    ranks_that_disagree_are_told,
]


@pytest.fixture(scope="module", params=[2, 3])
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    names = [scenario.__name__ for scenario in SCENARIOS]
    return run_ranks("test_distributed_save", names, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_on_ranks(reports: dict[str, list[str]], name: str) -> None:
    assert not any(reports[name]), "\n".join(reports[name])

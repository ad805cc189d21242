"""Saving under faults: planted links, damaged journals, commits that fail, disks shared badly, sources that change."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import random_hf, write
from safetensors.torch import load_file

import lazysd
from lazysd.errors import (
    MemoryBudgetError,
    OutputExistsError,
    ReadError,
    ResumeMismatchError,
    SourceChangedError,
    WriteError,
)
from lazysd.save import manifest, saving
from lazysd.stores import claim, placing
from lazysd.stores.journal import JOURNAL
from lazysd.stores.output_folder import OutputFolder

SIZE = "20KB"  # several shards


@pytest.fixture
def source(golden: Path, tmp_path: Path) -> lazysd.Checkpoint:
    shutil.copytree(golden / "qwen3_moe_tiny", tmp_path / "src")
    return lazysd.open(tmp_path / "src").convert("nemo")


@pytest.fixture
def whole(source: lazysd.Checkpoint, tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed save makes."""
    source.save(tmp_path / "whole", max_shard_size=SIZE, workers=1)
    return files(tmp_path / "whole")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def save(source: lazysd.Checkpoint, out: Path, **options: Any) -> None:
    source.save(out, max_shard_size=SIZE, workers=1, **options)


def interrupted(source: lazysd.Checkpoint, out: Path, patch: pytest.MonkeyPatch, where: str = "copy_files") -> Path:
    """The folder that a save leaves behind when it is interrupted with all shards finished."""

    def interrupt(self: object, *args: object) -> None:
        raise KeyboardInterrupt

    with patch.context() as patched:
        patched.setattr(OutputFolder, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(source, out)
    return out.with_name(f".{out.name}.lazysd-partial")


@pytest.mark.parametrize("what", ["partial", "old", "trash"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_planted_link_is_refused_and_not_followed(
    source: lazysd.Checkpoint, tmp_path: Path, what: str, overwrite: bool
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("years of work")
    if overwrite:
        save(source, tmp_path / "out")
    (tmp_path / f".out.lazysd-{what}").symlink_to(victim)
    with pytest.raises(WriteError, match=r"is a link to .*victim.*remove it"):
        save(source, tmp_path / "out", overwrite=overwrite)
    assert files(victim) == {"thesis.txt": b"years of work"}
    assert (tmp_path / "out").exists() == overwrite


@pytest.mark.parametrize("what", ["partial", "old", "trash"])
def test_a_planted_file_or_pipe_is_refused(source: lazysd.Checkpoint, tmp_path: Path, what: str) -> None:
    """A pipe under the name of an old checkpoint had been put into the destination's place."""
    place = tmp_path / f".out.lazysd-{what}"
    for plant in (place.touch, lambda: os.mkfifo(place)):
        plant()
        with pytest.raises(WriteError, match=rf"lazysd-{what} is no folder, so that no save has made it; remove it"):
            save(source, tmp_path / "out")
        place.unlink()
        assert not (tmp_path / "out").exists()


def test_a_hidden_folder_of_another_user_is_refused(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".out.lazysd-partial").mkdir()
    real = os.lstat

    def others(path: Any, **options: Any) -> os.stat_result:
        found = list(real(path, **options))
        if "lazysd-partial" in str(path):
            found[4] = os.geteuid() + 1
        return os.stat_result(found)

    monkeypatch.setattr(placing.os, "lstat", others)
    with pytest.raises(WriteError, match="belongs to another user"):
        save(source, tmp_path / "out")


def test_a_flipped_bit_in_the_journal_costs_a_shard_and_nothing_else(
    source: lazysd.Checkpoint, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = interrupted(source, tmp_path / "out", monkeypatch)
    shutil.copytree(left, tmp_path / "kept")
    journal = (tmp_path / "kept" / JOURNAL).read_bytes()
    lines = journal.count(b"\n")
    assert lines > 3
    for bit in range(0, 8 * len(journal), 8 * len(journal) // 60 + 1):
        shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "kept", left)
        damaged = bytearray(journal)
        damaged[bit // 8] ^= 1 << bit % 8
        (left / JOURNAL).write_bytes(damaged)
        redone = []
        with monkeypatch.context() as patch:
            open_shard = OutputFolder.open_shard
            patch.setattr(
                OutputFolder,
                "open_shard",
                lambda self, name, n, real=open_shard, redone=redone: (redone.append(name), real(self, name, n))[1],
            )
            save(source, tmp_path / "out")
        assert files(tmp_path / "out") == whole
        assert len(redone) <= 2  # a line whose end has gone takes the next one with it


@pytest.mark.parametrize("resume", [False, True])
def test_finished_work_survives_a_failing_commit(
    source: lazysd.Checkpoint,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    resume: bool,
) -> None:
    """The journal has gone by then; the manifest stands in for it."""

    def fail(self: object, *args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(placing.Place, "appear", fail)
        with pytest.raises(WriteError, match="Input/output error") as raised:
            save(source, tmp_path / "out")
    assert "5 of 5 shards kept" in raised.value.__notes__[0]
    left = tmp_path / ".out.lazysd-partial"
    assert not (left / JOURNAL).exists()
    written = {path.name: path.stat().st_mtime_ns for path in left.glob("*.safetensors")}  # inodes are given out again
    save(source, tmp_path / "out", resume=resume)
    assert files(tmp_path / "out") == whole
    kept = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in written} == written
    assert kept == resume


def test_a_damaged_manifest_does_not_stand_in(
    source: lazysd.Checkpoint, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    left = tmp_path / ".out.lazysd-partial"
    shutil.copytree(tmp_path / "whole", left)
    content = (left / manifest.MANIFEST).read_bytes()
    (left / manifest.MANIFEST).write_bytes(content.replace(b'"crc32": "', b'"crc32": "0', 1))
    save(source, tmp_path / "out")
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize("number", range(4))
def test_an_overwrite_killed_at_any_rename_keeps_one_of_the_two_whole(
    source: lazysd.Checkpoint, tmp_path: Path, whole: dict[str, bytes], number: int
) -> None:
    out = tmp_path / "out"
    lazysd.open(tmp_path / "src").save(out, max_shard_size=SIZE)
    old = files(out)
    pid = os.fork()
    if pid == 0:
        rename, count = os.rename, 0

        def deadly(*args: Any, **options: Any) -> None:
            nonlocal count
            if (".lazysd-old" in f"{args}" and args[0] != out.with_name(".out.lazysd-old")) or count:
                if count == number:
                    os._exit(9)
                count += 1
            rename(*args, **options)

        os.rename = deadly  # type: ignore[assignment]
        save(source, out, overwrite=True)
        os._exit(0)
    os.waitpid(pid, 0)
    aside = tmp_path / ".out.lazysd-old"
    assert files(out if out.exists() else aside) in (old, whole)
    save(source, out, overwrite=True)
    assert files(out) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src", "whole"]


def test_a_half_deleted_old_one_is_never_brought_back(
    source: lazysd.Checkpoint, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    save(source, out)

    def die(path: Path) -> None:
        next(path.glob("*.safetensors")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            placing, "_remove", lambda path: die(path) if path.name.endswith("trash") and path.exists() else 0
        )
        with pytest.raises(KeyboardInterrupt):
            save(source, out, overwrite=True)
    assert files(out) == whole
    shutil.rmtree(out)
    save(source, out)
    assert files(out) == whole
    assert not list(tmp_path.glob(".out*"))


def test_the_old_one_comes_back_where_the_second_rename_fails(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    lazysd.open(tmp_path / "src").save(out)
    old, rename = files(out), os.rename

    def fail(first: Any, second: Any) -> None:
        if str(first).endswith("partial") and Path(second) == out:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(first, second)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(WriteError, match="Invalid cross-device link"):
            save(source, out, overwrite=True)
    assert files(out) == old
    save(source, out, overwrite=True)
    assert lazysd.open(out).layout == "nemo"


def test_what_cannot_be_deleted_afterwards_is_no_failure(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    lazysd.open(tmp_path / "src").save(out)

    def fail(path: Path) -> None:
        if path.exists():
            raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(placing, "_remove", fail)
        save(source, out, overwrite=True)
    assert lazysd.open(out).layout == "nemo"
    assert "is complete; what it replaced could not be deleted" in caplog.text


CALLS = ("open", "fsync", "rename", "replace", "link", "unlink", "rmdir", "mkdir", "close", "lstat", "fstat", "scandir")


class Faulty:
    """Has the system's calls fail once: the one of this number, counted from the moment a commit begins."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, fault: BaseException):
        self.left, self.fault, self.counts, self.hit = number, fault, False, ""
        real = saving.finish
        patch.setattr(saving, "finish", lambda *args: (setattr(self, "counts", True), real(*args)))
        for name in CALLS:
            patch.setattr(os, name, self.wrapped(name, getattr(os, name) if name != "fsync" else lambda fd: None))

    def wrapped(self, name: str, call: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            self.left -= self.counts
            if self.counts and self.left == 0:
                self.hit = f"{name}{args}"
                if name == "close":
                    call(*args)
                raise self.fault
            return call(*args, **options)

        return run


@pytest.mark.parametrize(
    "fault", [(OSError, errno.EIO, "Input/output error"), (KeyboardInterrupt,)], ids=["EIO", "SIGINT"]
)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_commit_that_fails_at_any_call_loses_nothing_and_says_what_stands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: tuple[Any, ...], overwrite: bool, name: str
) -> None:
    """The old one or the new one stands, finished shards stay, and no error says that what stands is not there."""
    write(tmp_path / "src", random_hf(2, 2, 3), config={"model_type": "qwen3_moe", "num_experts": 2})
    ckpt, out = lazysd.open(tmp_path / "src"), tmp_path / name
    converted = ckpt.convert("nemo")

    def save(to: Path = out, what: lazysd.Checkpoint = converted) -> None:
        what.save(to, max_shard_size=40, workers=1, overwrite=overwrite)

    def found(at: Path = out) -> dict[str, bytes]:
        return files(at) if at.is_dir() else {path.name: path.read_bytes() for path in [at] if path.exists()}

    save()
    new = found()
    for number in itertools.count(1):
        for left in (out, *tmp_path.glob(".out*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if overwrite:
            save(what=ckpt)
        old, failed = found(), None
        with pytest.MonkeyPatch.context() as patch:
            faulty = Faulty(patch, number, fault[0](*fault[1:]))
            try:
                save()
            except (WriteError, ReadError, KeyboardInterrupt) as error:
                failed = error
        if not faulty.hit:
            break
        stands = found() == new
        assert stands or found() == old, faulty.hit
        notes = getattr(failed, "__notes__", ())
        assert (f"{out} is complete" in notes) == (stands and failed is not None), (faulty.hit, failed)
        assert not stands or failed is None or isinstance(failed, KeyboardInterrupt), faulty.hit
        if not stands:
            assert any("shards kept" in note for note in notes), (faulty.hit, failed)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    OutputFolder, "open_shard", lambda *args, hit=faulty.hit: pytest.fail(f"redone after {hit}")
                )
                save()
        elif overwrite:
            save()
        assert found() == new, faulty.hit
        assert overwrite or failed or not any(tmp_path.glob(".out*")) or "is complete; " in caplog.text, faulty.hit
    assert number > (30 if name == "out" else 8)


@pytest.mark.parametrize("exists", ["empty", "checkpoint"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [(errno.EBUSY, "Device or resource busy"), (errno.EPERM, "Operation not permitted"), (errno.EXDEV, "cross-device")],
)
def test_a_destination_that_cannot_be_replaced_is_found_before_the_work(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: str, fault: int, message: str
) -> None:
    """Mount points, other people's folders under a sticky bit, lower layers of an overlay: renaming them fails."""
    out, rename = tmp_path / "out", os.rename
    if exists == "empty":
        out.mkdir()
    else:
        save(source, out)
    before = files(out)

    def fail(first: Any, second: Any) -> None:
        if out in (Path(first), Path(second)):
            raise OSError(fault, os.strerror(fault))
        rename(first, second)

    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr(OutputFolder, "open_shard", lambda *args: pytest.fail("work had begun"))
    with pytest.raises(WriteError, match=f"cannot replace .*{message}.*new name"):
        save(source, out, overwrite=True)
    assert files(out) == before


def test_a_mount_point_is_named(source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
    with pytest.raises(WriteError, match="is a mount point; write to a folder in it"):
        save(source, tmp_path / "out")


@pytest.mark.parametrize("damage", ["deleted", "shorter", "replaced"])
def test_success_means_that_every_shard_is_there(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    copy_files = OutputFolder.copy_files

    def meddle(self: OutputFolder) -> Any:
        shard = self.building / "model-00002-of-00005.safetensors"
        content = shard.read_bytes()
        if damage == "shorter":
            os.truncate(shard, 100)
        else:
            shard.unlink()
        if damage == "replaced":
            (self.building / "other").write_bytes(content)
            os.rename(self.building / "other", shard)
        return copy_files(self)

    monkeypatch.setattr(OutputFolder, "copy_files", meddle)
    with pytest.raises(WriteError, match=r"model-00002-of-00005\.safetensors"):
        save(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def meet_without_locks(monkeypatch: pytest.MonkeyPatch, second: Callable[[], object]) -> None:
    """Have a second run come in, without locks, before the next run's first shard is finished."""
    monkeypatch.setattr(claim, "fcntl", None)
    finish = OutputFolder.finish_shard

    def meet(self: OutputFolder, *args: Any) -> None:
        monkeypatch.setattr(OutputFolder, "finish_shard", finish)
        second()
        finish(self, *args)

    monkeypatch.setattr(OutputFolder, "finish_shard", meet)


def test_locks_that_do_not_lock_are_noticed(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some network file systems everybody gets the lock: the first run finds out that a second one took over."""
    other = lazysd.open(tmp_path / "src").convert("hf-fused")
    meet_without_locks(monkeypatch, lambda: save(other, tmp_path / "out"))
    with pytest.raises(WriteError):
        save(source, tmp_path / "out")
    assert lazysd.open(tmp_path / "out").layout == "hf-fused"
    assert set(lazysd.open(tmp_path / "out")) == set(other)


def test_a_run_that_another_one_has_taken_over_stops(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks, the second run is still at work when the first one notices, and loses nothing by it."""
    other = lazysd.open(tmp_path / "src").convert("hf-fused")
    meet_without_locks(monkeypatch, lambda: interrupted(other, tmp_path / "out", monkeypatch))
    with pytest.raises(WriteError, match="another run has taken over"):
        save(source, tmp_path / "out")
    monkeypatch.setattr(OutputFolder, "open_shard", lambda *args: pytest.fail("redone"))
    save(other, tmp_path / "out")
    assert lazysd.open(tmp_path / "out").layout == "hf-fused"


def test_a_lock_error_that_is_no_contention_says_so(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(code: int) -> Any:
        def flock(fd: int, operation: int) -> None:
            raise OSError(code, os.strerror(code))

        return flock

    monkeypatch.setattr(claim.fcntl, "flock", fails(errno.EIO))
    with pytest.raises(WriteError, match=r"cannot lock .*Input/output error"):
        save(source, tmp_path / "out")
    monkeypatch.setattr(claim.fcntl, "flock", fails(errno.ENOLCK))
    save(source, tmp_path / "out")
    assert "has no locks" in caplog.text


def test_a_source_rewritten_under_its_old_mtime_is_noticed(source: lazysd.Checkpoint, tmp_path: Path) -> None:
    side = tmp_path / "src" / "generation_config.json"
    before = side.stat()

    def rewrite(done: int, total: int) -> None:
        side.write_bytes(side.read_bytes()[::-1])
        os.utime(side, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(SourceChangedError, match=r"generation_config\.json (was modified|changed)"):
        save(source, tmp_path / "out", progress=rewrite)
    assert not (tmp_path / "out").exists()


def test_a_side_file_that_cannot_be_read_is_the_source_s_fault_and_found_first(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = tmp_path / "src" / "generation_config.json"
    side.unlink()
    os.mkfifo(side)
    monkeypatch.setattr(OutputFolder, "open_shard", lambda *args: pytest.fail("work had begun"))
    with pytest.raises(lazysd.errors.LazysdError, match="generation_config") as raised:
        save(source, tmp_path / "out")
    assert not isinstance(raised.value, WriteError)


def test_the_callers_own_error_stays_what_it_is(source: lazysd.Checkpoint, tmp_path: Path) -> None:
    def report(done: int, total: int) -> None:
        raise BrokenPipeError(errno.EPIPE, "mine")

    with pytest.raises(BrokenPipeError, match="mine"):
        save(source, tmp_path / "out", progress=report)


@pytest.mark.parametrize("dst", ["/", "", "a\0b"])
def test_destinations_without_a_name(source: lazysd.Checkpoint, dst: str) -> None:
    with pytest.raises((WriteError, OutputExistsError)):
        source.save(dst)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("numpy.empty", MemoryError("Unable to allocate 8.00 MiB")),
        (
            "lazysd.save.run.fill",
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        ),
    ],
)
def test_memory_that_the_machine_lacks_is_an_error_of_ours(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(where, refuse)
    with pytest.raises(MemoryBudgetError, match="max_memory"):
        save(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_mismatch_says_what_differs(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(source, tmp_path / "out", monkeypatch)
    other = lazysd.open(tmp_path / "src").convert("hf-fused")
    with pytest.raises(ResumeMismatchError, match="layout: nemo there, hf-fused here"):
        save(other, tmp_path / "out")


def test_a_failure_that_a_rerun_would_meet_again_blocks_nobody(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "copy_files", lambda self: {}["a bug"])
        with pytest.raises(KeyError):
            save(source, tmp_path / "out")
    save(lazysd.open(tmp_path / "src").convert("hf-fused"), tmp_path / "out")
    assert lazysd.open(tmp_path / "out").layout == "hf-fused"


def test_one_file(source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.safetensors"
    plan = source.save(out, max_shard_size="4KB")
    assert len(plan.shards) == 1
    loaded = load_file(out)
    assert set(loaded) == set(source)
    assert all(torch.equal(loaded[key], source[key].materialize()) for key in loaded)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        source.save(out)
    lazysd.open(tmp_path / "src").save(out, overwrite=True)
    assert lazysd.open(out).layout == "hf"
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputExistsError, match="one file"):
        source.save(tmp_path / "folder.safetensors", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.safetensors", "out.safetensors", "src"]
    interrupted(source, tmp_path / "b.safetensors", monkeypatch, "commit")
    source.save(tmp_path / "b.safetensors")
    assert load_file(tmp_path / "b.safetensors").keys() == loaded.keys()


def test_the_manifest_names_every_file_and_its_own_damage(whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    found = manifest.read_manifest(folder)
    assert set(found.files) == set(whole) - {manifest.MANIFEST}
    assert {name: record.nbytes for name, record in found.files.items()} == {
        name: len(whole[name]) for name in found.files
    }
    assert found.facts["layout"] == "nemo"
    parsed = json.loads(whole[manifest.MANIFEST])
    assert [entry.key for entry in manifest.entries(folder)] == list(parsed["tensors"])
    content = whole[manifest.MANIFEST]
    for bit in range(0, 8 * len(content), 8 * len(content) // 200 + 1):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (folder / manifest.MANIFEST).write_bytes(damaged)
        with pytest.raises(lazysd.errors.FormatError, match="damaged"):
            manifest.read_manifest(folder)


def test_manifests_of_version_0_1_0_are_read(tmp_path: Path) -> None:
    old = {"lazysd": "0.1.0", "layout": "hf", "plan": "ab", "lossy": [], "shards": {"model.safetensors": "0000000a"}}
    old["tensors"] = {"a": {"dtype": "F32", "shape": [2], "shard": "model.safetensors", "crc32": "0000000b"}}
    (tmp_path / manifest.MANIFEST).write_text(json.dumps(old, indent=1))
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    assert manifest.read_manifest(tmp_path).files == {"model.safetensors": (5, 10)}
    assert list(manifest.entries(tmp_path)) == [("a", "F32", (2,), "model.safetensors", 11)]


def test_reading_faults_are_never_called_writing_faults(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ReadError, match=r"src/.*reading at \d+ failed"):
        save(source, tmp_path / "out")

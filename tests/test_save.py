"""Saving: budgets, shards, resume, overwrite, kills at any system call, and nothing left behind where it fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import lazysd
from lazysd.save import run as save_module
from lazysd.stores import claim
from lazysd.stores import output_folder as writer
from lazysd.stores.journal import JOURNAL, Journal
from lazysd.stores.shard_file import ShardFile

CALLS = ("open", "pwrite", "rename", "fsync", "posix_fallocate", "mkdir", "unlink", "close")


@pytest.fixture
def source(golden: Path) -> lazysd.Checkpoint:
    return lazysd.open(golden / "qwen3_moe_tiny")


def bits(checkpoint: lazysd.Checkpoint) -> dict[str, bytes]:
    return {key: bytes(t.materialize().contiguous().view(torch.uint8).numpy()) for key, t in checkpoint.items()}


@pytest.mark.parametrize("shard_size", ["4KB", "20KB", "5GB"])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_shard_size_and_crew_gives_the_same_bytes(
    source: lazysd.Checkpoint, tmp_path: Path, shard_size: str, num_workers: int
) -> None:
    plan = source.convert("nemo").save(tmp_path / "out", max_shard_size=shard_size, workers=num_workers)
    saved = lazysd.open(tmp_path / "out")
    assert bits(saved) == bits(source.convert("nemo"))
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [shard.name for shard in plan.shards]
    for name in files:
        with safe_open(tmp_path / "out" / name, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            for key in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                assert torch.equal(opened.get_tensor(key), saved[key].materialize())
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1)
    if index.exists():
        content = json.loads(index.read_text())
        assert content["metadata"] == {
            "total_parameters": sum(t.numel() for t in saved.values()),
            "total_size": saved.nbytes,
        }
        assert list(content["weight_map"]) == sorted(saved)


def test_side_files_are_copied_and_modes_follow_the_umask(source: lazysd.Checkpoint, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        source.save(tmp_path / "out")
    finally:
        os.umask(old)
    out = tmp_path / "out"
    for name in ("config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source.path / name).read_bytes()
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o640}
    assert out.stat().st_mode & 0o777 == 0o750


def test_manifest_holds_the_checksum_of_every_tensor_and_file(source: lazysd.Checkpoint, tmp_path: Path) -> None:
    source.convert("hf-fused").save(tmp_path / "out", max_shard_size="20KB", workers=3)
    manifest = json.loads((tmp_path / "out" / "lazysd.manifest.json").read_text())
    for key, data in bits(lazysd.open(tmp_path / "out")).items():
        assert manifest["tensors"][key]["crc32"] == f"{zlib.crc32(data):08x}"
    for name, checksum in manifest["shards"].items():
        assert f"{zlib.crc32((tmp_path / 'out' / name).read_bytes()):08x}" == checksum


def test_a_kill_at_any_system_call_leaves_nothing_or_everything(source: lazysd.Checkpoint, tmp_path: Path) -> None:
    """Invariant 7: DST is absent or complete after every kill, and the rerun ends in the same bytes."""
    converted = source.convert("nemo")
    converted.save(tmp_path / "whole", max_shard_size="30KB", workers=1)
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}

    def complete(out: Path) -> bool:
        return {path.name: path.read_bytes() for path in out.iterdir()} == files

    for number in range(1000):
        out = tmp_path / str(number) / "out"
        pid = os.fork()
        if pid == 0:
            _die_at(number, converted, out)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
        if killed and not out.exists():
            converted.save(out, max_shard_size="30KB", workers=1)
        assert complete(out)
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        if not killed:
            break
    assert number > 40  # the loop has really been through the calls


def _die_at(number: int, converted: lazysd.Checkpoint, out: Path) -> None:
    """In a child: save, and exit without cleaning up at the given system call of those that write."""
    count = 0

    def deadly(call):  # type: ignore[no-untyped-def]
        def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal count
            if count == number:
                os._exit(9)
            count += 1
            return call(*args, **kwargs)

        return wrapped

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))
    converted.save(out, max_shard_size="30KB", workers=1)
    os._exit(0)


def test_a_rerun_keeps_finished_shards(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted, written = source.convert("nemo"), []
    finish = writer.OutputFolder.finish_shard

    def fail_at_third(self: writer.OutputFolder, name: str, *rest: object) -> None:
        if len(written) == 2:
            raise OSError(errno.EIO, "the disk went away")
        written.append(name)
        finish(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(writer.OutputFolder, "finish_shard", fail_at_third)
    with pytest.raises(lazysd.errors.WriteError, match="the disk went away"):
        converted.save(tmp_path / "out", max_shard_size="20KB", workers=1)
    assert not (tmp_path / "out").exists()
    rewritten: list[str] = []

    def remember(self: writer.OutputFolder, name: str, *rest: object) -> None:
        rewritten.append(name)
        finish(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(writer.OutputFolder, "finish_shard", remember)
    kept = tmp_path / ".out.lazysd-partial" / written[0]
    damaged = tmp_path / ".out.lazysd-partial" / written[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x55")
    stamp = kept.stat().st_mtime_ns
    converted.save(tmp_path / "out", max_shard_size="20KB", workers=1)
    assert written[0] not in rewritten
    assert written[1] in rewritten  # its checksum no longer held
    assert (tmp_path / "out" / written[0]).stat().st_mtime_ns == stamp
    assert bits(lazysd.open(tmp_path / "out")) == bits(converted)
    manifest = json.loads((tmp_path / "out" / "lazysd.manifest.json").read_text())
    assert set(manifest["tensors"]) == set(converted)


def test_an_unfinished_run_of_another_plan_is_refused(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, *args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer.OutputFolder, "copy_files", fail)
        with pytest.raises(KeyboardInterrupt):
            source.convert("nemo").save(tmp_path / "out")
    with pytest.raises(lazysd.errors.ResumeMismatchError, match="no-resume"):
        source.convert("hf-fused").save(tmp_path / "out")
    source.convert("hf-fused").save(tmp_path / "out", resume=False)
    assert lazysd.open(tmp_path / "out").layout == "hf-fused"


def test_existing_destinations(source: lazysd.Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    source.save(out)  # an empty folder is no obstacle
    (out / "stale.txt").write_text("old")
    with pytest.raises(lazysd.errors.OutputExistsError, match="--overwrite"):
        source.convert("nemo").save(out)
    assert (out / "stale.txt").exists()
    source.convert("nemo").save(out, overwrite=True)
    assert lazysd.open(out).layout == "nemo"
    assert not (out / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_overwrite_keeps_the_old_one(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.save(tmp_path / "out")
    monkeypatch.setattr(save_module, "fill", lambda *a, **k: (_ for _ in ()).throw(lazysd.errors.ReadError("short")))
    with pytest.raises(lazysd.errors.ReadError, match="short"):
        source.convert("nemo").save(tmp_path / "out", overwrite=True)
    assert lazysd.open(tmp_path / "out").layout == "hf"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("where", ["", "inside", ".."])
def test_a_destination_over_the_source_is_refused(golden: Path, tmp_path: Path, where: str) -> None:
    import shutil

    shutil.copytree(golden / "qwen3_moe_tiny", tmp_path / "model" / "src")
    source = lazysd.open(tmp_path / "model" / "src")
    with pytest.raises(lazysd.errors.OutputExistsError, match="source"):
        source.convert("nemo").save(tmp_path / "model" / "src" / where, overwrite=True)
    assert bits(lazysd.open(tmp_path / "model" / "src")) == bits(source)


def test_two_writers_do_not_meet(source: lazysd.Checkpoint, tmp_path: Path) -> None:
    with (
        writer.OutputFolder(tmp_path / "out", "digest", 1),
        pytest.raises(lazysd.errors.OutputExistsError, match="another lazysd"),
    ):
        source.save(tmp_path / "out")


def test_no_space_is_said_before_anything_is_written(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def full(path: object) -> object:
        class Status:
            f_bavail, f_frsize, f_blocks = 1, real(tmp_path).f_frsize, 100

        return Status()

    monkeypatch.setattr(os, "statvfs", full)
    with pytest.raises(lazysd.errors.NoSpaceError, match="free"):
        source.convert("nemo").save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_a_no_space_error(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardFile, "write", full)
    with pytest.raises(lazysd.errors.NoSpaceError, match="no space left"):
        source.convert("nemo").save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_changes_is_noticed(golden: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(golden / "qwen3_moe_tiny", tmp_path / "src")
    source = lazysd.open(tmp_path / "src")
    shard = next((tmp_path / "src").glob("*.safetensors"))

    def touch(done: int, total: int) -> None:
        os.utime(shard)

    with pytest.raises(lazysd.errors.SourceChangedError, match="changed while it was read"):
        source.convert("nemo").save(tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists()


def test_progress_counts_every_byte_once(source: lazysd.Checkpoint, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source.convert("nemo").save(tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (source.nbytes, source.nbytes)


def test_too_small_a_budget_names_the_smallest(source: lazysd.Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(lazysd.errors.MemoryBudgetError, match=r"smallest that would do is (\d+)MB") as raised:
        source.convert("nemo").save(tmp_path / "out", max_memory="1MB")
    smallest = str(raised.value).rsplit(" ", 1)[-1]
    source.convert("nemo").save(tmp_path / "out", max_memory=smallest)
    assert bits(lazysd.open(tmp_path / "out")) == bits(source.convert("nemo"))


def test_every_source_byte_is_read_once_in_both_directions(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 2. Gate and up of one expert are alternate stretches of the same rows; both are cut from one read."""
    from lazysd.stores.base import File, Parts

    count = [0, 0]
    read = File.read

    def counted(self: File, parts: Parts) -> None:
        for buffer, _ in parts:
            count[0] += len(buffer)
            count[1] += 1
        read(self, parts)

    monkeypatch.setattr(File, "read", counted)
    for name, to in (("qwen3_moe_tiny", "nemo"), ("qwen3_moe_tiny_native.safetensors", "hf")):
        source = lazysd.open(golden / name)
        count[:] = [0, 0]
        plan = source.convert(to).save(tmp_path / to)
        assert count[0] == plan.read_nbytes == source.nbytes
        assert count[1] <= 2 * len(source) + 12


def test_memory_stays_within_the_budget(tmp_path: Path) -> None:
    """Invariant 3, on 200 MB of experts and 64 MB of budget, measured as VmHWM of a child process."""
    child = """
import sys, torch, lazysd, lazysd.save.run
from safetensors.torch import save_file
def grown(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
src, dst = sys.argv[1:]
import os
if os.fork() == 0:
    torch.manual_seed(0)
    key = "model.layers.0.mlp.experts.{}.{}_proj.weight"
    save_file({key.format(e, g): torch.randn(s).bfloat16() for e in range(32)
        for g, s in (("gate", (1024, 1024)), ("up", (1024, 1024)), ("down", (1024, 1024)))}, src)
    os._exit(0)
os.wait()
before = grown()
plan = lazysd.open(src).convert("nemo").save(dst, max_memory="64MB", workers=2)
print(grown() - before, plan.peak_nbytes)
"""
    done = subprocess.run(
        [sys.executable, "-c", child, str(tmp_path / "src.safetensors"), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown, projected = map(int, done.stdout.split())
    assert grown < 64_000_000
    assert projected < 64_000_000


def test_an_early_kill_of_another_plan_is_no_obstacle(source: lazysd.Checkpoint, tmp_path: Path) -> None:
    """Without a finished shard an unfinished run has nothing that could be lost."""
    building = tmp_path / ".out.lazysd-partial"
    building.mkdir()
    Journal(building / JOURNAL).begin("another", {}, {})
    (building / "model.safetensors.part").write_bytes(b"half")
    source.save(tmp_path / "out")
    assert bits(lazysd.open(tmp_path / "out")) == bits(source)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_refused_resume_keeps_the_other_run(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: object, *args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer.OutputFolder, "copy_files", interrupt)
        with pytest.raises(KeyboardInterrupt):
            source.convert("nemo").save(tmp_path / "out")
    kept = sorted(path.name for path in (tmp_path / ".out.lazysd-partial").iterdir())
    with pytest.raises(lazysd.errors.ResumeMismatchError):
        source.convert("hf-fused").save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / ".out.lazysd-partial").iterdir()) == kept
    source.convert("nemo").save(tmp_path / "out")
    assert bits(lazysd.open(tmp_path / "out")) == bits(source.convert("nemo"))


def test_a_kill_between_the_renames_of_an_overwrite_is_mended(source: lazysd.Checkpoint, tmp_path: Path) -> None:
    source.save(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.lazysd-old")
    with pytest.raises(lazysd.errors.OutputExistsError, match="exists"):
        source.convert("nemo").save(tmp_path / "out")
    assert lazysd.open(tmp_path / "out").layout == "hf"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_memory_that_changed_is_never_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tensor in memory nothing tells that it was written to, so a rerun redoes what it had finished."""
    tensors = {"a": torch.zeros(1000), "b": torch.zeros(1000)}
    composed = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()})
    finish, finished = writer.OutputFolder.finish_shard, []

    def fail_at_second(self: writer.OutputFolder, name: str, *rest: object) -> None:
        if finished:
            raise OSError(errno.EIO, "the disk went away")
        finished.append(name)
        finish(self, name, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(writer.OutputFolder, "finish_shard", fail_at_second)
        with pytest.raises(lazysd.errors.WriteError, match="the disk went away"):
            composed.save(tmp_path / "out", max_shard_size="4KB", workers=1)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:  # the same, killed: the finished shard is still there
        patch.setattr(writer.OutputFolder, "finish_shard", fail_at_second)
        patch.setattr(writer.OutputFolder, "__exit__", lambda self, *error: self.claim.release())
        finished.clear()
        with pytest.raises(OSError, match="the disk went away"):
            composed.save(tmp_path / "out", max_shard_size="4KB", workers=1)
    assert (tmp_path / ".out.lazysd-partial" / finished[0]).exists()
    tensors["a"].add_(1)
    with pytest.raises(lazysd.errors.SourceChangedError, match="edited in place"):
        composed.save(tmp_path / "out", max_shard_size="4KB", workers=1)
    composed = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()})
    composed.save(tmp_path / "out", max_shard_size="4KB", workers=1)
    assert bits(lazysd.open(tmp_path / "out")) == bits(composed)


@pytest.mark.parametrize("then", ["another one writes", "nobody"])
def test_a_lock_on_a_folder_that_is_gone_counts_for_nothing(
    source: lazysd.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Between opening the folder and locking it, one process commits it and perhaps another one begins anew."""
    out, building, real = tmp_path / "out", tmp_path / ".out.lazysd-partial", claim.fcntl.flock
    held: list[int] = []

    def meanwhile(fd: int, operation: int) -> None:
        if not held:
            building.rename(tmp_path / "elsewhere")
            building.mkdir()
            held.append(os.open(building, os.O_RDONLY))
            if then != "nobody":
                (building / "model.safetensors").write_bytes(b"hours of work")
                real(held[0], claim.fcntl.LOCK_EX)
        real(fd, operation)

    monkeypatch.setattr(claim.fcntl, "flock", meanwhile)
    if then == "nobody":
        source.save(out)
        assert bits(lazysd.open(out)) == bits(source)
    else:
        with pytest.raises(lazysd.errors.OutputExistsError, match="another lazysd"):
            source.save(out)
        assert (building / "model.safetensors").read_bytes() == b"hours of work"
    os.close(held[0])


def test_conjugated_and_negated_views_are_their_values(tmp_path: Path) -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    composed = lazysd.Checkpoint({"conj": lazysd.from_torch(z.conj()), "neg": lazysd.from_torch(z.conj().imag)})
    composed.save(tmp_path / "out")
    saved = lazysd.open(tmp_path / "out")
    assert saved["conj"].materialize().tolist() == [1 - 2j, 3 + 4j]
    assert saved["neg"].materialize().tolist() == [-2.0, 4.0]


def test_sources_are_those_of_the_graph(golden: Path, tmp_path: Path) -> None:
    """A checkpoint composed of bare lazy tensors lists no files; its sources are watched all the same."""
    import shutil

    shutil.copytree(golden / "qwen3_moe_tiny", tmp_path / "src")
    composed = lazysd.Checkpoint(dict(lazysd.open(tmp_path / "src")))
    with pytest.raises(lazysd.errors.OutputExistsError, match="source"):
        composed.save(tmp_path, overwrite=True)
    shard = next((tmp_path / "src").glob("*.safetensors"))
    with pytest.raises(lazysd.errors.SourceChangedError, match="changed while it was read"):
        composed.save(tmp_path / "out", progress=lambda done, total: os.utime(shard))
    assert [path.name for path in tmp_path.iterdir()] == ["src"]

"""Destinations that cannot be made or replaced, on mounts, in other people's folders, below files: found up front."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import random_hf, write

import lazysd
from lazysd.cli.main import main
from lazysd.stores.output_folder import OutputFolder

CONFIG = {"model_type": "qwen3_moe", "num_experts": 3, "hidden_size": 4, "moe_intermediate_size": 5}

# In a namespace of its own: the shell mounts, then lazysd runs; 99 where work began before the fault was found.
CHILD = """
import os, subprocess, sys
subprocess.run(["sh", "-ec", sys.argv.pop(1)], check=True)
from lazysd.cli.main import main
from lazysd.stores.output_folder import OutputFolder
OutputFolder.open_shard = lambda *args: os._exit(99)
sys.exit(main(sys.argv[1:]))
"""
MOUNTS = {
    "mount point": ("mount -t tmpfs none out; cp src/* out", "out: it is a mount point; write to a folder in it"),
    "of another folder": ("mount --bind src out", "cannot replace .*out: .*; write to"),
    "a file": ("touch out.safetensors; mount --bind src/config.json out.safetensors", "out.safetensors: .*; write to"),
    "read-only": ("mount -t tmpfs none in; mkdir in/out; mount -o remount,ro in", "in/.*: Read-only file system"),
    "lower layer": (
        "mkdir low top; cp -r src low/out; mount -t tmpfs none top; mkdir top/up top/work;"
        "mount -t overlay none -o lowerdir=low,upperdir=top/up,workdir=top/work in",
        "cannot replace .*in/out: Invalid cross-device link; write to a new name",
    ),
    "full": ("mount -t tmpfs -o size=8k none in", "in has [0-9,]+ bytes free, the result needs"),
}


def in_namespace(at: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "-rm", sys.executable, "-c", CHILD, script, *words]
    return subprocess.run(command, cwd=at, capture_output=True, text=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "src", random_hf(), config=CONFIG)


@pytest.mark.parametrize("kind", MOUNTS)
def test_what_a_mount_forbids_is_found_before_the_work(kind: str, source: Path, tmp_path: Path) -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "n", "/mnt"]).returncode
    ):
        pytest.skip("this system lets nobody mount")
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    script, message = MOUNTS[kind]
    dst = {"mount point": "out", "of another folder": "out", "a file": "out.safetensors"}.get(kind, "in/out")
    shutil.copytree(source, tmp_path / "read")
    done = in_namespace(tmp_path, script, "convert", "read", dst, "--to", "nemo", "--overwrite")
    assert done.returncode == 4, done.stderr
    assert re.fullmatch(f"lazysd: .*{message}.*\n", done.stderr), done.stderr


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody reaches; those of pytest are this user's alone."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        yield Path(made)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(
    ("mode", "exists", "message"),
    [
        (0o1777, True, "cannot replace .*out: Operation not permitted; write to a new name"),
        (0o755, True, "cannot write .*: Permission denied"),
        (0o755, False, "cannot write .*: Permission denied"),
    ],
)
def test_other_peoples_folders_are_found_before_the_work(mode: int, exists: bool, message: str, shared: Path) -> None:
    """In a sticky folder anybody may write, and nobody may rename what another one has put there."""
    made = lazysd.open(write(shared / "src", random_hf(), config=CONFIG)).convert("nemo")
    made.save(shared / "whole")  # imports what only root may read
    place = shared / "place"
    place.mkdir()
    if exists:
        write(place / "out", random_hf(), config=CONFIG)
        os.chmod(place / "out", 0o777)
    os.chmod(place, mode)
    before = sorted(os.listdir(place))
    if not (child := os.fork()):
        code = 98
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            OutputFolder.open_shard = lambda *args: os._exit(99)  # type: ignore[assignment, method-assign]
            made.save(place / "out", overwrite=True)
        except lazysd.errors.WriteError as error:
            code = 0 if re.search(message, str(error)) else 97
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(os.listdir(place)) == before


@pytest.mark.parametrize("below", ["file", "file/deeper/still", "link", "loop", "pipe"])
@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_below_what_is_no_folder(
    below: str, name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    assert main(["convert", str(source), str(tmp_path / below / name)]) == 4
    blocking = tmp_path / below.split("/")[0]
    said = f"lazysd: cannot write {tmp_path / below / name}: {blocking} is no folder; choose another destination\n"
    assert capsys.readouterr().err == said
    assert sorted(os.listdir(tmp_path)) == before

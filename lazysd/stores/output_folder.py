"""Writing a checkpoint folder so that it appears only when complete, and an interrupted run can go on.

Everything is built in a hidden, locked sibling of the destination. A shard is preallocated, its data written first and
its header last, then synced, renamed and noted in a journal with its checksum. One rename makes the result appear.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import LazysdError, NoSpaceError, OutputExistsError, ResumeMismatchError, SourceChangedError, WriteError
from .base import File
from .shard_file import ShardFile

JOURNAL = ".lazysd-journal.jsonl"
_COPY_NBYTES = 1 << 20
MAX_TRIES = 100  # to lock a folder that other processes commit at the same moment


class OutputFolder:
    """The destination while it is being made. Use as a context manager; `commit()` makes it appear."""

    def __init__(
        self, dst: Path, digest: str, nbytes: int, overwrite: bool = False, resume: bool = True, volatile: bool = False
    ):
        self.dst = Path(os.path.abspath(dst))
        self.digest, self.nbytes, self.overwrite, self.resume = digest, nbytes, overwrite, resume
        self.building = self.dst.with_name(f".{self.dst.name}.lazysd-partial")
        self.old = self.dst.with_name(f".{self.dst.name}.lazysd-old")
        self.finished: dict[str, dict[str, Any]] = {}  # shard -> its journal line
        self.volatile = volatile  # sources may change unnoticed, so that nothing finished is ever kept
        self._foreign = False  # what stands there belongs to another run, which may want to go on
        self._lock: int | None = None
        self._journal_lock = threading.Lock()

    def __enter__(self) -> OutputFolder:
        self._check_free()  # once without touching anything, and again when nobody else can change it
        if not any(self._locked() for _ in range(MAX_TRIES)):
            raise WriteError(f"cannot write {self.building}: it keeps disappearing; who removes it?")
        try:
            if os.path.lexists(self.old) and not os.path.lexists(self.dst):  # killed between an overwrite's two renames
                os.rename(self.old, self.dst)
            self._check_free()
            self._take_over()
            self._check_space()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _locked(self) -> bool:
        """Lock the folder; False where it was committed or removed by another process just before."""
        try:
            self.dst.parent.mkdir(parents=True, exist_ok=True)
            self.building.mkdir(exist_ok=True)
            fd = os.open(self.building, os.O_RDONLY)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self.dst.parent.is_dir():
                return False
            raise _named(error, self.building) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(self.building)):
                self._lock = fd
                return True
        except FileNotFoundError:
            pass
        except OSError:
            os.close(fd)
            raise OutputExistsError(f"another lazysd is writing {self.dst} right now; wait for it") from None
        os.close(fd)
        return False

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._lock is not None:
            worthless = not self.finished or self.volatile or isinstance(error, SourceChangedError)
            if worthless and not self._foreign and self.building.exists():
                shutil.rmtree(self.building, ignore_errors=True)  # nothing in it is worth resuming
            self._unlock()
        if isinstance(error, OSError) and not isinstance(error, LazysdError):
            raise _named(error, self.building) from error

    def _check_free(self) -> None:
        """Refuse to put the result where something is that may not go."""
        if not os.path.lexists(self.dst) or _is_empty_folder(self.dst):
            return
        if not self.dst.is_dir():
            raise OutputExistsError(f"{self.dst} exists and is no folder; choose another destination")
        if not self.overwrite:
            raise OutputExistsError(
                f"{self.dst} exists; choose another destination or pass overwrite=True (--overwrite)"
            )
        if not any(_of_a_checkpoint(name) for name in os.listdir(self.dst)):
            raise OutputExistsError(
                f"{self.dst} holds no checkpoint, so it is not overwritten; choose another destination or remove it"
            )

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_over(self) -> None:
        """Keep what an interrupted run of the same plan finished and still holds intact; remove the rest."""
        lines = []
        journal = self.building / JOURNAL
        if journal.exists():
            lines = [line for line in map(_parse_line, journal.read_text("utf-8", "replace").splitlines()) if line]
        if len(lines) > 1 and self.resume:  # without a finished shard there is nothing to go on from
            if lines[0].get("plan") != self.digest:
                self._foreign = True
                raise ResumeMismatchError(
                    f"{self.building} holds an unfinished run of another plan (other source, layout or options); "
                    "repeat that run to finish it, or discard it with resume=False (--no-resume)"
                )
            for line in [] if self.volatile else lines[1:]:
                path = self.building / str(line.get("shard"))
                if path.parent == self.building and path.is_file() and file_crc32(path) == line.get("crc32"):
                    self.finished[path.name] = line
        for entry in self.building.iterdir():
            if entry.name not in self.finished:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self._note({"plan": self.digest})
        for line in self.finished.values():
            self._note(line)

    def _check_space(self) -> None:
        kept = sum((self.building / name).stat().st_size for name in self.finished)
        status = os.statvfs(self.building)
        free, needed = status.f_bavail * status.f_frsize, self.nbytes - kept
        if free < needed:
            raise NoSpaceError(
                errno.ENOSPC,
                f"{self.dst.parent} has {free:,} bytes free, the result needs {needed:,} more; free some first",
            )

    def _note(self, line: dict[str, Any]) -> None:
        with self._journal_lock, open(self.building / JOURNAL, "a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def open_shard(self, name: str, nbytes: int) -> ShardFile:
        """A shard to write into, its space allocated."""
        return ShardFile(self.building / f"{name}.part", nbytes)

    def finish_shard(self, name: str, file: ShardFile, header: bytes, crc: int, tensors: dict[str, int]) -> None:
        """Write the header, make all of it durable, give the shard its name, note it and its checksums."""
        file.finish(header)
        os.rename(file.path, self.building / name)
        sync_folder(self.building)
        line = {"shard": name, "crc32": crc, "tensors": tensors}
        self._note(line)
        self.finished[name] = line

    def write_file(self, name: str, data: bytes) -> None:
        """A small file, durable."""
        with open(self.building / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def copy_files(self, files: Iterable[File]) -> None:
        """Side files, as they are, subfolders and all; links are resolved."""
        for file in files:
            (self.building / file.name).parent.mkdir(parents=True, exist_ok=True)
            with open(self.building / file.name, "wb") as copy:
                for at in range(0, file.size, _COPY_NBYTES):
                    copy.write(file.text(at, min(_COPY_NBYTES, file.size - at)))
                copy.flush()
                os.fsync(copy.fileno())
            file.check_unchanged()

    def commit(self) -> None:
        """Make the result appear at the destination."""
        (self.building / JOURNAL).unlink()
        sync_folder(self.building)
        replaced = self.overwrite and os.path.lexists(self.dst) and not _is_empty_folder(self.dst)
        if replaced:
            _remove(self.old)
            os.rename(self.dst, self.old)
        os.rename(self.building, self.dst)
        sync_folder(self.dst.parent)
        if replaced:
            _remove(self.old)
        self._unlock()


def check_apart(dst: Path, root: Path | None, sources: Iterable[str]) -> None:
    """Refuse a destination inside, over or around what is being read."""
    target = os.path.realpath(dst)
    places = [os.path.realpath(path) for path in sources]
    for place in [*places, *([os.path.realpath(root)] if root else [])]:
        if place == target or place.startswith(target + os.sep):
            raise OutputExistsError(f"{dst} is, or holds, the source {place}; write to another folder")
    if root and os.path.isdir(root) and target.startswith(os.path.realpath(root) + os.sep):
        raise OutputExistsError(f"{dst} lies inside the source {root}; write to a folder outside of it")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def file_crc32(path: Path) -> int:
    """CRC-32 of a whole file, in a megabyte of memory."""
    crc, buffer = 0, bytearray(_COPY_NBYTES)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            crc = zlib.crc32(memoryview(buffer)[:count], crc)
    return crc


def _parse_line(line: str) -> dict[str, Any] | None:
    """A journal line, None where a crash cut it short."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _of_a_checkpoint(name: str) -> bool:
    """Whether a file's name is one that a checkpoint's folder has."""
    return name.endswith((".safetensors", ".safetensors.index.json")) or name in ("lazysd.manifest.json", ".metadata")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _named(error: OSError, place: Path) -> OSError:
    """The error of ours for an error of the system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(
            error.errno, f"no space left while writing {place}; free some and run again to go on from there"
        )
    return WriteError(error.errno, f"cannot write {error.filename or place}: {error.strerror}")

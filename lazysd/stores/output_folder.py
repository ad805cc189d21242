"""Writing a checkpoint so that it appears only when complete, and an interrupted run can go on.

Everything is built in a hidden, locked sibling of the destination. A shard is preallocated, its data written first and
its header last, then synced, renamed and noted in a journal with its checksum. One rename makes the result appear.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import LazysdError, NoSpaceError, OutputExistsError, ResumeMismatchError, SourceChangedError, WriteError
from .base import File
from .claim import OWNER, Claim
from .crc import crc32
from .faults import named, writing
from .journal import JOURNAL, Finished, Journal, Notes, no_links
from .placing import Place, sync_folder
from .shard_file import ShardFile

logger = logging.getLogger(__name__)

_COPY_NBYTES = 1 << 20
MAX_TRIES = 100  # to lock a folder that other processes commit at the same moment
_PASSING = (OSError, KeyboardInterrupt, SystemExit, MemoryError)  # a rerun of the same plan may well succeed


class OutputFolder:
    """The destination while it is being made. Use as a context manager; `commit()` makes it appear.

    Args:
        dst: the folder, or the `.safetensors` file, to make.
        digest: fingerprint of the plan; a run of another plan is not resumed.
        nbytes: what the result takes.
        overwrite: replace a checkpoint that is there.
        resume: keep what an interrupted run of the same plan finished.
    """

    def __init__(self, dst: Path, digest: str, nbytes: int, overwrite: bool = False, resume: bool = True):
        self.place = Place(dst)
        self.dst, self.building = self.place.dst, self.place.building
        self.digest, self.nbytes, self.overwrite, self.resume = digest, nbytes, overwrite, resume
        self.volatile = False  # sources may change unnoticed, so that nothing finished is ever kept
        self.about: dict[str, str] = {}  # the plan in words, to say what sets it apart from another one
        self.recover: Callable[[Path], Notes] = lambda folder: Notes(None, {}, {})  # where the journal has gone
        self.sides: dict[str, File] = {}  # files to copy: their names in the result
        self.finished: dict[str, Finished] = {}
        self.claim = Claim(self.building, self.dst)
        self.passes_on: BaseException | None = None  # an error that is not about this folder
        self._written: dict[str, os.stat_result] = {}  # shards finished here, as they were then
        self._journal = Journal(self.building / JOURNAL)
        self._made: os.stat_result | None = None  # what is to be at the destination, by which it is known there
        self._foreign = False  # what stands there belongs to another run, which may want to go on

    def __enter__(self) -> OutputFolder:
        with writing(self.dst):
            self.place.check_free(self.overwrite)  # once without touching anything, and again when locked
            self.claim.take()
        try:
            with writing(self.dst):
                self.place.recover()
                self.place.check_free(self.overwrite)
                self.place.check_replaceable()
                self._take_over()
                self._check_space()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.claim.held:
            if not self._foreign and self.building.exists() and self.claim.stands():
                kept = self.finished or self._journal.read().finished  # other ranks write into it as well
                if not kept or self.volatile or self.is_done or isinstance(error, SourceChangedError):
                    shutil.rmtree(self.building, ignore_errors=True)  # nothing in it is worth resuming
                elif error is not None and not isinstance(error, _PASSING):
                    self._note_failure()
            self.claim.release()
        if isinstance(error, OSError) and not isinstance(error, LazysdError) and error is not self.passes_on:
            raise named(error, self.building) from error

    def _note_failure(self) -> None:
        try:
            self._journal.note_failure(self.digest)
        except OSError as error:
            logger.debug("%s: the failure could not be noted: %s", self.building, error)

    def _take_over(self) -> None:
        """Keep what an interrupted run of the same plan finished and still holds intact; remove the rest."""
        notes = self._journal.read()
        if not notes.finished:
            notes = self.recover(self.building)
        if notes.finished and self.resume:  # without a finished shard there is nothing to go on from
            if notes.plan == self.digest:
                for name, shard in {} if self.volatile else notes.finished.items():
                    path = self.building / name
                    if path.parent == self.building and _is_intact(path, shard):
                        self.finished[name] = shard
            elif not notes.failed:
                self._foreign = True
                raise ResumeMismatchError(
                    f"{self.building} holds an unfinished run of another plan "
                    f"({_differences(notes.about, self.about)}); repeat that run to finish it, or discard it with "
                    "resume=False (--no-resume)"
                )
        self.claim.sign()
        self._journal.begin(self.digest, self.about, self.finished)
        keep = {*self.finished, OWNER, JOURNAL}
        for entry in self.building.iterdir():
            if entry.name not in keep:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def _check_space(self) -> None:
        kept = sum(shard.nbytes for shard in self.finished.values())
        try:
            status = os.statvfs(self.building)
        except (AttributeError, OSError):
            return  # systems and file systems that do not tell
        if not status.f_blocks:
            return  # nothing is known: some network and memory file systems report zero blocks
        free, needed = status.f_bavail * status.f_frsize, self.nbytes - kept
        if free < needed:
            raise NoSpaceError(
                errno.ENOSPC,
                f"{self.dst.parent} has {free:,} bytes free, the result needs {needed:,} more; free some first",
            )

    def _check_ours(self) -> None:
        if not self.claim.stands():
            self._foreign = True
            raise WriteError(f"cannot write {self.dst}: another run has taken over {self.building}; let only one write")

    def open_shard(self, name: str, nbytes: int) -> ShardFile:
        """A shard to write into, its space allocated."""
        with writing(self.building):
            return ShardFile(self.building / f"{name}.{self.claim.token}.part", nbytes)

    def finish_shard(
        self, name: str, file: ShardFile, around: Iterable[tuple[int, bytes]], crc: int, checksums: bytes
    ) -> None:
        """Write what stands around the tensors, sync, give the shard its name, note it and its checksums."""
        with writing(self.building):
            status = file.finish(around)
            self._check_ours()
            os.rename(file.path, self.building / name)
            sync_folder(self.building)
            shard = Finished(file.nbytes, crc, checksums)
            self._journal.note(self.digest, name, shard)
        self._written[name] = status
        self.finished[name] = shard

    def write_file(self, name: str, pieces: Iterable[bytes]) -> tuple[int, int]:
        """A file of these bytes, durable: its size and CRC-32."""
        nbytes = crc = 0
        with writing(self.building), self._new_file(name) as file:
            for piece in pieces:
                file.write(piece)
                nbytes, crc = nbytes + len(piece), crc32(piece, crc)
            file.flush()
            os.fsync(file.fileno())
        return nbytes, crc

    def _new_file(self, name: str) -> Any:
        path = self.building / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | no_links(), 0o666), "wb")

    def copy_files(self) -> dict[str, tuple[int, int]]:
        """Side files, as they are: size and CRC-32 of each."""
        return {name: self.write_file(name, _pieces_of(file)) for name, file in self.sides.items()}

    def commit(self, nbytes: Mapping[str, int]) -> None:
        """Make the result appear at the destination, once every shard is there with the size that it should have.

        Nothing that goes wrong once it stands there is a failure.
        """
        self._check_ours()
        with writing(self.building):
            for name, size in nbytes.items():
                self._check_complete(name, size)
            result = self.building
            if self.place.is_file:
                (result,) = (self.building / name for name in nbytes)
            else:
                for name in (OWNER, JOURNAL):  # the manifest stands in for the journal from here on
                    (self.building / name).unlink(missing_ok=True)
                sync_folder(self.building)
            self._made = os.lstat(result)
        try:
            self.place.appear(result, self.overwrite)
            if self.place.is_file:
                shutil.rmtree(self.building)
        except OSError as error:
            if not self.is_done:
                raise
            logger.warning("%s is complete; what is left beside it could not be deleted: %s", self.dst, error.strerror)
        self.claim.release()

    @property
    def is_done(self) -> bool:
        """Whether what this run has made stands at the destination."""
        with suppress(OSError):
            return self._made is not None and os.path.samestat(os.lstat(self.dst), self._made)
        return False

    def _check_complete(self, name: str, nbytes: int) -> None:
        try:
            found = os.lstat(self.building / name)
        except FileNotFoundError:
            raise WriteError(
                f"cannot make {self.dst}: {name} was written but is not in {self.building}; was it deleted, or do the "
                "processes that save see different disks?"
            ) from None
        written = self._written.get(name)
        same = written is None or (os.path.samestat(found, written) and found.st_mtime_ns == written.st_mtime_ns)
        if found.st_size != nbytes or not same:
            raise WriteError(
                f"cannot make {self.dst}: {name} in {self.building} is not as it was written ({found.st_size} bytes, "
                f"expected {nbytes}); what else writes there?"
            )


def check_apart(dst: Path, root: Path | None, sources: Iterable[str]) -> None:
    """Refuse a destination inside, over or around what is being read."""
    target = os.path.realpath(dst)
    places = [os.path.realpath(path) for path in sources]
    for place in [*places, *([os.path.realpath(root)] if root else [])]:
        if place == target or place.startswith(target + os.sep):
            raise OutputExistsError(f"{dst} is, or holds, the source {place}; write to another folder")
    if root and os.path.isdir(root) and target.startswith(os.path.realpath(root) + os.sep):
        raise OutputExistsError(f"{dst} lies inside the source {root}; write to a folder outside of it")


def _pieces_of(file: File) -> Iterator[bytes]:
    for at in range(0, file.size, _COPY_NBYTES):
        yield file.text(at, min(_COPY_NBYTES, file.size - at))
    file.check_unchanged()


def _is_intact(path: Path, shard: Finished) -> bool:
    """Whether a finished shard still has the bytes that were written; reads it in a megabyte of memory."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != shard.nbytes:
        return False
    crc, buffer = 0, bytearray(_COPY_NBYTES)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            crc = crc32(memoryview(buffer)[:count], crc)
    return crc == shard.crc32


def _differences(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What sets two plans apart, in words."""
    found = [
        f"{name}: {there.get(name, 'nothing')} there, {here.get(name, 'nothing')} here"
        for name in dict.fromkeys((*there, *here))
        if there.get(name) != here.get(name)
    ]
    return "; ".join(found) or "other source, layout or options"

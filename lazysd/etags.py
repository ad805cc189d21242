"""Whether a snapshot in the hub cache is what the hub has: each file against the etag that its blob is named by.

Source: huggingface_hub, whose blobs are named by the ETag of a file: the SHA-256 of its bytes for files of Git LFS, and
for others git's own SHA-1 of a blob, which counts a header of "blob <nbytes>" and a null byte.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .arguments import checked
from .checking import Fault, FolderCheck
from .errors import LazysdError, MissingShardError
from .move import workers
from .opening import open as open_checkpoint
from .sizes import format_nbytes
from .stores.hub_cache import cached_model, is_model, snapshot
from .stores.strict_json import printable

_BUFFER_NBYTES = 1 << 20
_ETAG = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


@dataclass
class SnapshotCheck(FolderCheck):
    """What checking a snapshot found; `strangers` are files that are no link to a blob named by a checksum."""

    num_sha256: int = 0  # files compared by the SHA-256 of their bytes
    num_sha1: int = 0  # files compared by git's SHA-1

    def _head(self) -> str:
        where = printable(self.path)
        if not self.sound:
            return f"DAMAGED: {where} is not what the hub has: {len(self.faults)} faults"
        return (
            f"verified: {where} is what the hub has: {self.num_files} files, {format_nbytes(self.nbytes)}, by the "
            f"etags in the cache (SHA-256 of {self.num_sha256}, git's SHA-1 of {self.num_sha1})"
        )

    def _aside(self, name: str) -> str:
        return f"not checked, for the cache has no etag of it: {printable(name)}"


class _Blob(NamedTuple):
    """A file of a snapshot that has an etag."""

    name: str
    path: Path
    etag: str
    nbytes: int


def snapshot_of(path: str | os.PathLike[str]) -> Path | None:
    """The snapshot that a path, or the name of a cached model, stands for; None where it is none."""
    folder = Path(path)
    try:
        folder = folder if os.path.lexists(folder) else cached_model(folder)
        folder = snapshot(folder) if is_model(folder) else folder
    except MissingShardError:
        return None
    home = Path(os.path.abspath(folder)).parent
    return folder if home.name == "snapshots" and is_model(home.parent) and os.path.isdir(folder) else None


@checked
def check_snapshot(
    path: str | os.PathLike[str],
    num_workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> SnapshotCheck:
    """Read every file of a snapshot, and compare its checksum with the name of its blob.

    Raises:
        MissingShardError: the path is no snapshot of the hub cache, or none of its files has an etag.
    """
    folder = snapshot_of(path)
    if folder is None:
        raise MissingShardError(f"{printable(os.fspath(path))} is no snapshot of the hub cache; check the path")
    result = SnapshotCheck(str(folder))
    blobs = list(_blobs(folder, result))
    if not blobs and not result.faults:
        raise MissingShardError(f"no file of {folder} is a link to a blob named by a checksum: nothing to compare with")
    total, lock, own = sum(blob.nbytes for blob in blobs), threading.Lock(), threading.local()

    def work(blob: _Blob) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = memoryview(bytearray(_BUFFER_NBYTES))
        try:
            fault = _fault(blob, own.buffer)
        except OSError as error:
            fault = Fault(blob.name, "", f"cannot be read: {error.strerror}")
        with lock:
            result.nbytes += blob.nbytes
            result.faults += [fault] if fault else []
            if report is not None:
                report(result.nbytes, total)

    workers.run(sorted(blobs, key=lambda blob: -blob.nbytes), work, workers.asked(num_workers))
    result.faults += _missing(folder, {fault.file for fault in result.faults})
    result.faults.sort()
    result.num_files = len(blobs)
    result.num_sha256 = sum(len(blob.etag) == 64 for blob in blobs)
    result.num_sha1 = len(blobs) - result.num_sha256
    return result


def _missing(folder: Path, noted: set[str]) -> list[Fault]:
    """The shards that have not been fetched, by an index that is sound."""
    try:
        with open_checkpoint(folder, partial=True) as part:
            absent = part.facts.absent
    except LazysdError:  # no weights of a known kind, or damaged ones, which their etag shows
        return []
    sound = [one for one in absent if os.path.basename(one.where) not in noted]
    return [Fault(name, "", "it is missing; fetch it") for one in sound for name in one.names if name not in noted]


def _blobs(folder: Path, result: SnapshotCheck) -> Iterator[_Blob]:
    """The files of a snapshot that lead to a blob of the same cache; the others are noted."""
    home = Path(os.path.realpath(folder.parent.parent / "blobs"))
    for root, folders, names in os.walk(folder):
        for name in sorted((*names, *(name for name in folders if os.path.islink(os.path.join(root, name))))):
            place = Path(root, name)
            shown, target = os.path.relpath(place, folder), Path(os.path.realpath(place))
            etag = target.name
            if not place.is_symlink() or target.parent != home or not _ETAG.fullmatch(etag):
                result.strangers.append(shown)
            elif not target.is_file():
                result.faults.append(Fault(shown, "", f"its blob {etag} is missing; fetch the model again"))
            else:
                yield _Blob(shown, target, etag, target.stat().st_size)


def _fault(blob: _Blob, buffer: memoryview) -> Fault | None:
    """What is wrong with a file's bytes, None where they are those that its etag names."""
    digest = hashlib.sha256()
    if len(blob.etag) == 40:
        digest = hashlib.sha1(b"blob %d\0" % blob.nbytes, usedforsecurity=False)
    with open(blob.path, "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            digest.update(buffer[:got])
    if digest.hexdigest() == blob.etag:
        return None
    return Fault(blob.name, "", f"its bytes are not those of its etag {blob.etag}; fetch it again")

"""Whether files that came from the hub are what it has: each against its etag, which is a checksum.

In the cache an etag is the name of a blob; `hf download --local-dir` notes it for each file below `.cache`.

Source: huggingface_hub 2.4, file_download.py and _local_folder.py. The etag is the SHA-256 of a file's bytes for files
of Git LFS, and for others git's own SHA-1 of a blob, which counts a header of "blob <nbytes>" and a null byte.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .arguments import checked
from .checking import Fault, FolderCheck, files_below
from .errors import LazysdError, MemoryBudgetError, MissingShardError
from .formats import containers
from .formats.base import Folder, plural
from .formats.safetensors.index import INDEX
from .move import workers
from .save.manifest import MANIFEST
from .sizes import format_nbytes, parse_size
from .stores.base import Options
from .stores.hub_cache import LOCAL_DOWNLOADS, cached_model, is_model, snapshot
from .stores.local import LocalFile
from .stores.places import place_of
from .stores.strict_json import listing, printable
from .stores.system import read_flags

_BUFFER_NBYTES = 1 << 20
_WORKER_NBYTES = 2 * _BUFFER_NBYTES  # a buffer and a thread
_BASE_NBYTES = 8 << 20
_FILE_NBYTES = 1000  # of memory for each file: its names, its etag, what is wrong with it
_INDEX_TIMES = 6  # bytes of memory that each byte of an index takes once it is parsed
_ETAG = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_NOTE = ".metadata"  # what a file's name is followed by where `hf download` notes its commit and etag
_NOTE_NBYTES = 512  # of a note that are read; it takes 130 at most


@dataclass
class SnapshotCheck(FolderCheck):
    """What checking a snapshot found; `strangers` are files of which no checksum is known."""

    num_sha256: int = 0  # files compared by the SHA-256 of their bytes
    num_sha1: int = 0  # files compared by git's SHA-1
    commits: dict[str, int] = field(default_factory=dict)  # of files below a local folder, and how many are of each

    def _head(self) -> str:
        where = printable(self.path)
        if not self.sound:
            head = f"DAMAGED: {where} is not what the hub has: {plural(len(self.faults), 'fault')}"
        else:
            head = (
                f"verified: {where} is what the hub has: {plural(self.num_files, 'file')}, "
                f"{format_nbytes(self.nbytes)}, by the etags in the cache (SHA-256 of {self.num_sha256}, git's SHA-1 "
                f"of {self.num_sha1})"
            )
        if len(self.commits) < 2:
            return head
        return f"{head}\n  they are of {len(self.commits)} commits: {listing(list(self.commits))}"

    def _aside(self, name: str) -> str:
        return f"not checked, for the cache has no etag of it: {printable(name)}"


class _Fetched(NamedTuple):
    """A file of a snapshot that has an etag."""

    name: str
    path: Path
    etag: str
    nbytes: int


def snapshot_of(path: str | os.PathLike[str]) -> Path | None:
    """The folder with etags that a path, or the name of a cached model, stands for; None where it is none.

    A folder of `hf download --local-dir` that a save has written a manifest into since is not one any more.
    """
    folder = Path(path)
    try:
        folder = folder if os.path.lexists(folder) else cached_model(folder)
        folder = snapshot(folder) if is_model(folder) else folder
    except MissingShardError:
        return None
    return folder if os.path.isdir(folder) and (_is_cached(folder) or _is_local(folder)) else None


def _is_cached(folder: Path) -> bool:
    home = Path(os.path.abspath(folder)).parent
    return home.name == "snapshots" and is_model(home.parent)


def _is_local(folder: Path) -> bool:
    notes = folder / LOCAL_DOWNLOADS
    if os.path.realpath(notes) != os.path.join(os.path.realpath(folder), *LOCAL_DOWNLOADS.split("/")):
        return False  # it, or a folder above it, is a link
    if os.path.lexists(folder / MANIFEST):
        return os.path.isfile(notes / (MANIFEST + _NOTE))
    return any(name.endswith(_NOTE) for name in files_below(notes))


@checked
def check_snapshot(
    path: str | os.PathLike[str],
    num_workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
    max_memory: int | str = "128MB",
) -> SnapshotCheck:
    """Read every file of a snapshot, and compare its checksum with its etag.

    Args:
        path: a snapshot in the hub's cache, a model of it ("org/name"), or a folder of `hf download --local-dir`.
        num_workers: threads; None uses the CPUs there are. Fewer work where `max_memory` has no room for more.
        report: called as report(done_nbytes, total_nbytes).
        max_memory: bytes for buffers, and for what is known of the files.

    Raises:
        MissingShardError: the path is no such folder, or none of its files has an etag.
        MemoryBudgetError: `max_memory` has no room for what is known of the files.
    """
    folder = snapshot_of(path)
    if folder is None:
        raise MissingShardError(
            f"{printable(os.fspath(path))} is no snapshot of the hub cache, and `hf download --local-dir` has left no "
            "etags in it; check the path"
        )
    crew = _crew(folder, workers.asked(num_workers), parse_size(max_memory))
    result = SnapshotCheck(str(folder))
    files = list(_cached(folder, result) if _is_cached(folder) else _local(folder, result))
    if not files and not result.faults:
        raise MissingShardError(f"of no file of {folder} is a checksum known: nothing to compare with")
    _compare(files, result, crew, report)
    result.faults += _missing(folder, {fault.file for fault in result.faults})
    result.faults.sort()
    result.num_files = len(files)
    result.num_sha256 = sum(len(file.etag) == 64 for file in files)
    result.num_sha1 = len(files) - result.num_sha256
    return result


def _crew(folder: Path, wanted: int, budget: int) -> int:
    """How many workers the budget has room for. The index is read when they are done. Raises MemoryBudgetError."""
    num_files = sum(1 for _ in _names(folder))
    indexes = [folder / name for name in os.listdir(folder) if INDEX.fullmatch(name)]
    largest = max((path.stat().st_size for path in indexes if path.is_file()), default=0)
    needed = max(_WORKER_NBYTES, _INDEX_TIMES * largest)
    smallest = _BASE_NBYTES + _FILE_NBYTES * num_files + needed
    if budget < smallest:
        raise MemoryBudgetError(
            f"max_memory {format_nbytes(budget)} is too little to check {num_files} files; "
            f"the smallest that would do is {-(-smallest // 1_000_000)}MB"
        )
    return min(wanted, (budget - smallest + needed) // _WORKER_NBYTES)


def _compare(
    files: list[_Fetched], result: SnapshotCheck, crew: int, report: Callable[[int, int], None] | None
) -> None:
    """Read every file; what is wrong goes to the result."""
    total, lock, own = sum(file.nbytes for file in files), threading.Lock(), threading.local()

    def work(file: _Fetched) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = memoryview(bytearray(_BUFFER_NBYTES))
        try:
            fault = _fault(file, own.buffer)
        except OSError as error:
            fault = Fault(file.name, "", f"cannot be read: {error.strerror}")
        with lock:
            result.nbytes += file.nbytes
            result.faults += [fault] if fault else []
            if report is not None:
                report(result.nbytes, total)

    workers.run(sorted(files, key=lambda file: -file.nbytes), work, crew)


def _missing(folder: Path, noted: set[str]) -> list[Fault]:
    """The shards that have not been fetched, by an index that is sound."""
    try:
        absent = containers.lacks(Folder(place_of(folder, Options("pread"))))
    except MissingShardError as error:
        return [] if noted else [Fault(".metadata", "", str(error))]
    except LazysdError:  # no weights of a known kind, or a damaged index, which its etag shows
        return []
    if absent is None or os.path.basename(absent.where) in noted:
        return []
    return [Fault(name, "", "it is missing; fetch it") for name in absent.names if name not in noted]


def _cached(folder: Path, result: SnapshotCheck) -> Iterator[_Fetched]:
    """The files of a snapshot that lead to a blob of the same cache; the others are noted."""
    home = Path(os.path.realpath(folder.parent.parent / "blobs"))
    for shown in _names(folder):
        place = folder / shown
        target = Path(os.path.realpath(place))
        etag = target.name
        if not place.is_symlink() or target.parent != home or not _ETAG.fullmatch(etag):
            result.strangers.append(shown)
        elif not target.is_file():
            result.faults.append(Fault(shown, "", f"its blob {etag} is missing; fetch the model again"))
        else:
            yield _Fetched(shown, target, etag, target.stat().st_size)


def _local(folder: Path, result: SnapshotCheck) -> Iterator[_Fetched]:
    """The files of a local folder that `hf download` has noted an etag of; the others are noted here."""
    commits: Counter[str] = Counter()
    downloads = folder / LOCAL_DOWNLOADS
    for shown in _names(folder):
        place = folder / shown
        commit, etag = _noted(downloads / (shown + _NOTE))
        if place.is_symlink() or not place.is_file() or not _ETAG.fullmatch(etag):
            result.strangers.append(shown)
        else:
            commits[commit] += 1
            yield _Fetched(shown, place, etag, place.stat().st_size)
    for note in files_below(downloads):
        name = note.removesuffix(_NOTE)
        if name != note and not os.path.lexists(folder / name) and _ETAG.fullmatch(_noted(downloads / note)[1]):
            result.faults.append(Fault(name, "", "it is missing, though it had been fetched; fetch it again"))
    result.commits = dict(commits.most_common())


def _names(folder: Path) -> Iterator[str]:
    """Every file below a folder but what the hub's client keeps there for itself."""
    return (name for name in files_below(folder) if not name.startswith(LOCAL_DOWNLOADS.split("/")[0] + "/"))


def _noted(path: Path) -> tuple[str, str]:
    """(commit, etag) of a note; empty where it is none, or says something else."""
    if path.is_symlink() or not path.is_file():
        return "", ""
    try:
        with closing(LocalFile(str(path), io="pread")) as file:
            text = file.text(0, min(file.size, _NOTE_NBYTES)).decode("ascii", "replace")
    except LazysdError:
        return "", ""
    commit, etag = map(str.strip, f"{text}\n".split("\n")[:2])
    return (commit, etag) if _ETAG.fullmatch(commit) else ("", "")


def _fault(file: _Fetched, buffer: memoryview) -> Fault | None:
    """What is wrong with a file's bytes, None where they are those that its etag names."""
    digest = hashlib.sha256()
    if len(file.etag) == 40:
        digest = hashlib.sha1(b"blob %d\0" % file.nbytes, usedforsecurity=False)
    with open(os.open(file.path, read_flags()), "rb", buffering=0) as stream:
        while got := stream.readinto(buffer):
            digest.update(buffer[:got])
    if digest.hexdigest() == file.etag:
        return None
    return Fault(file.name, "", f"its bytes are not those of its etag {file.etag}; fetch it again")

"""Whether a folder is still what a save wrote: every file and tensor against the checksums of its own manifest."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from . import dtypes
from .display.text import printable
from .errors import FormatError, LazysdError
from .formats import containers
from .formats.base import Contents, Folder
from .formats.safetensors.header import read_header
from .formats.safetensors.index import SAFETENSORS
from .move import workers
from .save.manifest import MANIFEST, Entry, Record, entries, read_manifest
from .sizes import format_nbytes
from .stores.base import Options
from .stores.crc import combine, crc32
from .stores.local import LocalFile
from .stores.places import place_of

_PIECE_NBYTES = 16 << 20  # that one worker takes at a time
_BUFFER_NBYTES = 1 << 20
MAX_SHOWN = 20
Places = dict[str, tuple[str, tuple[int, ...], int]]


class Fault(NamedTuple):
    """One thing that is not as it was written."""

    file: str
    what: str  # a tensor's key, "header", or "" for the file as a whole
    detail: str


@dataclass
class FolderCheck:
    """What checking a folder found."""

    path: str
    num_tensors: int = 0
    num_files: int = 0
    nbytes: int = 0  # that were read
    faults: list[Fault] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)  # files that the manifest does not know

    @property
    def sound(self) -> bool:
        """Whether every checksum holds and no file is missing."""
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        found = {**vars(self), "sound": self.sound}
        return found | {"faults": [fault._asdict() for fault in self.faults]}

    def __str__(self) -> str:
        where = printable(self.path)
        if self.sound:
            lines = [
                f"verified: {where} is as it was written: {self.num_tensors} tensors in {self.num_files} files, "
                f"{format_nbytes(self.nbytes)}, by the checksums of {MANIFEST}"
            ]
        else:
            lines = [f"DAMAGED: {where} is not as it was written: {len(self.faults)} faults"]
        for fault in self.faults[:MAX_SHOWN]:
            place = f"{fault.file}: {fault.what}" if fault.what else fault.file
            lines.append(f"  {printable(place)}: {printable(fault.detail)}")
        if len(self.faults) > MAX_SHOWN:
            lines.append(f"  … and {len(self.faults) - MAX_SHOWN} more (all with --json)")
        return "\n".join(lines + [f"  not checked, for no save wrote it: {printable(name)}" for name in self.strangers])


class _Span(NamedTuple):
    """A run of a file's bytes with a name: a tensor's key, "" for the header or a whole side file."""

    name: str
    start: int
    nbytes: int


def check_folder(
    path: str | os.PathLike[str],
    num_workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> FolderCheck:
    """Read every byte of a folder that lazysd wrote, and compare with lazysd.manifest.json.

    Reads through one buffer of a megabyte for each worker; imports no torch for side files.

    Raises:
        MissingShardError: there is no manifest. ReadError: a file cannot be read.
    """
    folder = Path(os.fsdecode(path))
    result = FolderCheck(str(folder))
    wanted: dict[str, dict[str, Entry]] = {}
    try:
        manifest = read_manifest(folder)
        for entry in entries(folder):
            wanted.setdefault(entry.shard, {})[entry.key] = entry
            result.num_tensors += 1
        if not all(isinstance(record.nbytes, int) and record.nbytes >= 0 for record in manifest.files.values()):
            raise ValueError("a size is no number")
    except FormatError as error:
        result.faults.append(Fault(MANIFEST, "", str(error)))
        return result
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        result.faults.append(Fault(MANIFEST, "", f"it is not what a save writes: {error!r}"))
        return result
    spans: dict[str, list[_Span]] = {}
    contents = None
    if any(not name.endswith(SAFETENSORS) for name in wanted):
        try:
            contents = containers.read(Folder(place_of(folder, Options("pread"))))
        except LazysdError as error:
            result.faults.append(Fault(MANIFEST, "", f"its tensors cannot be found: {error}"))
            wanted = {}  # files are checked whole
    for name, record in manifest.files.items():
        if _is_there(folder, name, record, result):
            spans[name] = _spans(folder / name, record, wanted.get(name), contents, result)
    sums = _read(folder, spans, num_workers or workers.default_workers(), report)
    for name, parts in spans.items():
        _judge(name, parts, sums[name], manifest.files[name], wanted.get(name, {}), result)
    result.num_files = len(spans)
    result.nbytes = sum(span.nbytes for parts in spans.values() for span in parts)
    result.strangers = sorted(_files_of(folder) - manifest.files.keys() - {MANIFEST})
    return result


def _files_of(folder: Path) -> set[str]:
    """Every file below a folder, by its path from there; links are not followed."""
    return {os.path.relpath(os.path.join(root, name), folder) for root, _, names in os.walk(folder) for name in names}


def _is_there(folder: Path, name: str, record: Record, result: FolderCheck) -> bool:
    """Whether a file can be read and has its size."""
    path = folder / name
    if not path.parent.resolve().is_relative_to(folder.resolve()) or path.is_symlink() or not path.is_file():
        detail = "is a link" if path.is_symlink() else "is missing"
        result.faults.append(Fault(name, "", f"{detail}; {format_nbytes(record.nbytes)} were written"))
        return False
    if (nbytes := path.stat().st_size) != record.nbytes:
        result.faults.append(Fault(name, "", f"has {nbytes:,} bytes, {record.nbytes:,} were written"))
        return False
    return True


def _spans(
    path: Path, record: Record, tensors: Mapping[str, Entry] | None, contents: Contents | None, result: FolderCheck
) -> list[_Span]:
    """A file's runs, in order and without holes: header and tensors of a shard, others whole."""
    whole = [_Span("", 0, record.nbytes)]
    if not tensors:
        return whole
    try:
        places = _places(path, contents)
    except LazysdError as error:
        result.faults.append(Fault(path.name, "header", str(error)))
        return whole
    found: list[_Span] = []
    end = 0
    for key, (code, dims, start) in sorted(places.items(), key=lambda item: item[1][2]):
        if start > end:  # a header, or what stands between tensors
            found.append(_Span("", end, start - end))
        end = start + prod(dims) * dtypes.itemsize(code)
        found.append(_Span(key, start, end - start))
    if end < record.nbytes:
        found.append(_Span("", end, record.nbytes - end))
    stated = {key: (code, dims) for key, (code, dims, _) in places.items()}
    written = {key: (entry.code, entry.shape) for key, entry in tensors.items()}
    if contents is not None:  # what has no elements has no place in a file
        written = {key: said for key, said in written.items() if prod(said[1])}
    for key in dict.fromkeys((*written, *stated)):
        if stated.get(key) != written.get(key):
            detail = f"the header says {stated.get(key)}, written was {written.get(key)}"
            result.faults.append(Fault(path.name, key, detail))
    return found


def _places(path: Path, contents: Contents | None) -> Places:
    """Of each tensor that a shard says it holds: code, shape, first byte. `contents`: of what is not safetensors."""
    if contents is None:
        with closing(LocalFile(str(path))) as file:
            entries = read_header(file).entries
        return {
            key: (entry.code, dtypes.packed(entry.code, entry.shape), entry.start) for key, entry in entries.items()
        }
    found: Places = {}
    for key, tensor in contents.tensors.items():
        for chunk in tensor.chunks:
            if chunk.file.name == path.name:
                found[key] = (tensor.code, tensor.dims, chunk.offset)
    return found


def _read(
    folder: Path, spans: Mapping[str, list[_Span]], num_workers: int, report: Callable[[int, int], None] | None
) -> dict[str, list[int]]:
    """The CRC-32 of every run. Runs are cut in pieces, read by all workers, and put together again."""
    sums: dict[str, list[dict[int, tuple[int, int]]]] = {name: [{} for _ in parts] for name, parts in spans.items()}
    total = sum(span.nbytes for parts in spans.values() for span in parts)
    done, lock, own = 0, threading.Lock(), threading.local()

    def work(job: list[tuple[str, int, int, int]]) -> None:
        nonlocal done
        if not hasattr(own, "buffer"):
            own.buffer = memoryview(bytearray(_BUFFER_NBYTES))
        fd = os.open(folder / job[0][0], os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        try:
            for name, number, start, nbytes in job:
                sums[name][number][start] = (_crc(fd, start, nbytes, own.buffer, folder / name), nbytes)
        finally:
            os.close(fd)
        with lock:
            done += sum(piece[3] for piece in job)
            if report is not None:
                report(done, total)

    workers.run(_jobs(spans), work, num_workers)
    return {name: [_together(pieces) for pieces in parts] for name, parts in sums.items()}


def _jobs(spans: Mapping[str, list[_Span]]) -> Iterator[list[tuple[str, int, int, int]]]:
    """Pieces of one file that lie one after the other: (file, number of the run, offset, bytes)."""
    for name, parts in spans.items():
        job: list[tuple[str, int, int, int]] = []
        room = _PIECE_NBYTES
        for number, span in enumerate(parts):
            at, end = span.start, span.start + span.nbytes
            while at < end:
                nbytes = min(end - at, room)
                job.append((name, number, at, nbytes))
                at, room = at + nbytes, room - nbytes
                if not room:
                    yield job
                    job, room = [], _PIECE_NBYTES
        if job:
            yield job


def _crc(fd: int, start: int, nbytes: int, buffer: memoryview, path: Path) -> int:
    crc = 0
    while nbytes:
        got = os.preadv(fd, [buffer[: min(nbytes, len(buffer))]], start)
        if not got:
            raise FormatError(f"{path} ended at byte {start} while it was being read; is somebody writing it?")
        crc = crc32(buffer[:got], crc)
        start, nbytes = start + got, nbytes - got
    return crc


def _together(pieces: Mapping[int, tuple[int, int]]) -> int:
    crc = 0
    for _, (piece, nbytes) in sorted(pieces.items()):
        crc = combine(crc, piece, nbytes)
    return crc


def _judge(
    name: str, spans: list[_Span], sums: list[int], record: Record, written: Mapping[str, Entry], result: FolderCheck
) -> None:
    """Name each tensor whose bytes changed; the header where they are all right and the file is not."""
    wrong = [
        span.name
        for span, crc in zip(spans, sums, strict=True)
        if span.name in written and crc != written[span.name].crc32
    ]
    result.faults += [Fault(name, key, "its bytes are not those that were written") for key in wrong]
    whole = 0
    for span, crc in zip(spans, sums, strict=True):
        whole = combine(whole, crc, span.nbytes)
    known = any(fault.file == name for fault in result.faults)
    if whole != record.crc32 and not known:
        result.faults.append(Fault(name, "header" if written else "", "its bytes are not those that were written"))

"""Whether a folder is still what a save wrote: every file and tensor against the checksums of its own manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, groupby
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from . import dtypes
from .arguments import checked
from .errors import FormatError, LazysdError, MemoryBudgetError
from .formats import containers
from .formats.base import Contents, Folder
from .formats.safetensors.header import read_header
from .formats.safetensors.index import SAFETENSORS
from .move import workers
from .move.summing import BUFFER_NBYTES, Span, sums_of
from .save.manifest import MANIFEST, Entry, Manifest, Record, entries, read_manifest
from .sizes import format_nbytes, parse_size
from .stores.base import Options
from .stores.crc import combine
from .stores.local import LocalFile
from .stores.places import place_of
from .stores.strict_json import printable

_BASE_NBYTES = 8 << 20
_WORKER_NBYTES = 2 * BUFFER_NBYTES  # a buffer and a thread
_TENSOR_NBYTES = 2500  # what is known of a tensor: its line of the manifest, its place, the sums of its pieces
MAX_SHOWN = 20
Batch = dict[str, dict[str, Entry]]  # shard -> key -> what was written
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

    def _head(self) -> str:
        where = printable(self.path)
        if not self.sound:
            return f"DAMAGED: {where} is not as it was written: {len(self.faults)} faults"
        return (
            f"verified: {where} is as it was written: {self.num_tensors} tensors in {self.num_files} files, "
            f"{format_nbytes(self.nbytes)}, by the checksums of {MANIFEST}"
        )

    def _aside(self, name: str) -> str:
        return f"not checked, for no save wrote it: {printable(name)}"

    def __str__(self) -> str:
        lines = [self._head()]
        for fault in self.faults[:MAX_SHOWN]:
            place = f"{fault.file}: {fault.what}" if fault.what else fault.file
            lines.append(f"  {printable(place)}: {printable(fault.detail)}")
        if len(self.faults) > MAX_SHOWN:
            lines.append(f"  … and {len(self.faults) - MAX_SHOWN} more (all with --json)")
        return "\n".join(lines + [f"  {self._aside(name)}" for name in self.strangers])


@checked
def check_folder(
    path: str | os.PathLike[str],
    num_workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
    max_memory: int | str = "128MB",
) -> FolderCheck:
    """Read every byte of a folder that lazysd wrote, and compare with lazysd.manifest.json.

    Reads through a buffer of a megabyte for each worker, some shards after the others; imports no torch for side files.

    Args:
        num_workers: threads; None uses the CPUs there are. Fewer work where `max_memory` has no room for more.
        report: called as report(done_nbytes, total_nbytes).
        max_memory: bytes for buffers, and for what is known of the tensors of the shards that are read at a time.

    Raises:
        MissingShardError: there is no manifest. ReadError: a file cannot be read.
        MemoryBudgetError: `max_memory` has no room for what is known of one shard.
    """
    folder, budget = Path(os.fsdecode(path)), parse_size(max_memory)
    result = FolderCheck(str(folder))
    try:
        manifest = read_manifest(folder)
        counts = _counted(folder, manifest)
    except FormatError as error:
        result.faults.append(Fault(MANIFEST, "", str(error)))
        return result
    result.num_tensors = sum(counts.values())
    crew, most = _crew(counts, workers.asked(num_workers), budget)
    doubts: list[Fault] = []  # what the damage of another file explains as well
    contents, known = _contents(folder, counts, doubts)
    present = {name for name, record in manifest.files.items() if _is_there(folder, name, record, result)}
    result.num_files, result.nbytes = len(present), sum(manifest.files[name].nbytes for name in present)
    advance = _advance(report, result.nbytes)
    others: Batch = {name: {} for name in manifest.files if name not in known}
    for batch in chain(_batches(folder, known, most), [others]):
        spans: dict[str, list[Span]] = {}
        for name in (name for name in batch if name in present):
            spans[name], odd = _spans(folder / name, manifest.files[name], batch[name], contents)
            (result.faults if contents is None else doubts).extend(odd)
        sums = sums_of(folder, spans, crew, advance)
        for name, parts in spans.items():
            told = any(fault.file == name for fault in result.faults)
            is_whole, wrong = _judged(name, parts, sums[name], manifest.files[name], batch[name], told)
            (doubts if contents is not None and is_whole else result.faults).extend(wrong)
    result.faults += [] if result.faults else doubts
    result.strangers = sorted({*files_below(folder)} - manifest.files.keys() - {MANIFEST})
    return result


def _counted(folder: Path, manifest: Manifest) -> dict[str, int]:
    """How many tensors each shard has, in the order of the manifest, once all of it has been looked at.

    Raises FormatError where no save has written it.
    """
    counts: dict[str, int] = {}
    last = ""
    for entry in entries(folder):
        if entry.shard not in manifest.files or (entry.shard != last and entry.shard in counts):
            raise FormatError(f"{folder / MANIFEST} is damaged: {entry.shard!r} is not where a save would put it")
        last = entry.shard
        counts[last] = counts.get(last, 0) + 1
    return counts


def _crew(counts: Mapping[str, int], wanted: int, budget: int) -> tuple[int, int]:
    """(workers, tensors to know of at a time)."""
    plain = all(name.endswith(SAFETENSORS) for name in counts)
    least = max(counts.values(), default=0) if plain else sum(counts.values())
    smallest = _BASE_NBYTES + _TENSOR_NBYTES * least + _WORKER_NBYTES
    if budget < smallest:
        raise MemoryBudgetError(
            f"max_memory {format_nbytes(budget)} is too little to check {least} tensors at a time; "
            f"the smallest that would do is {-(-smallest // 1_000_000)}MB"
        )
    crew = min(wanted, workers.MAX_HELPERS, (budget - smallest) // _WORKER_NBYTES + 1)
    return crew, (budget - _BASE_NBYTES - crew * _WORKER_NBYTES) // _TENSOR_NBYTES


def _contents(folder: Path, counts: dict[str, int], doubts: list[Fault]) -> tuple[Contents | None, dict[str, int]]:
    """What a folder that is not of safetensors files holds; and the shards whose tensors can be told apart."""
    if all(name.endswith(SAFETENSORS) for name in counts):
        return None, counts
    try:
        return containers.read(Folder(place_of(folder, Options("pread")))), counts
    except LazysdError as error:
        doubts.append(Fault(MANIFEST, "", f"its tensors cannot be found: {error}"))
        return None, {}  # files are checked whole


def _batches(folder: Path, counts: Mapping[str, int], most: int) -> Iterator[Batch]:
    """What the manifest says of each shard's tensors, for as many shards at a time as have `most` tensors."""
    batch: Batch = {}
    room = most
    for name, found in groupby(entries(folder) if counts else (), key=lambda entry: entry.shard):
        if batch and counts.get(name, 0) > room:
            yield batch
            batch, room = {}, most
        batch[name] = {entry.key: entry for entry in found}
        room -= len(batch[name])
    yield batch


def _advance(report: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if report is not None:
            report(done, total)

    return advance


def files_below(folder: Path) -> Iterator[str]:
    """Every file below a folder, by its path from there, in order. Links are not followed, and are files, to folders
    too; what cannot be listed holds none."""
    todo = [""]
    while todo:
        inside = todo.pop()
        try:
            with os.scandir(folder / inside) as found:
                entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
        except OSError:
            continue
        yield from (inside + name for name, is_folder in entries if not is_folder)
        todo += [f"{inside}{name}/" for name, is_folder in reversed(entries) if is_folder]


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
    path: Path, record: Record, tensors: Mapping[str, Entry] | None, contents: Contents | None
) -> tuple[list[Span], list[Fault]]:
    """A file's runs, in order and without holes: header and tensors of a shard, others whole; and what is odd there."""
    whole = [Span(None, 0, record.nbytes)]
    if not tensors:
        return whole, []
    try:
        places = _places(path, contents)
    except LazysdError as error:
        return whole, [Fault(path.name, "header", str(error))]
    found: list[Span] = []
    end = 0
    for key, (code, dims, start) in sorted(places.items(), key=lambda item: item[1][2]):
        if start > end:  # a header, or what stands between tensors
            found.append(Span(None, end, start - end))
        if start < end or (end := start + prod(dims) * dtypes.itemsize(code)) > record.nbytes:
            return whole, [Fault(path.name, key, "it does not lie where a save puts it")]
        found.append(Span(key, start, end - start))
    if end < record.nbytes:
        found.append(Span(None, end, record.nbytes - end))
    stated = {key: (code, dims) for key, (code, dims, _) in places.items()}
    written = {key: (entry.code, entry.shape) for key, entry in tensors.items()}
    if contents is not None:  # what has no elements has no place in a file
        written = {key: said for key, said in written.items() if prod(said[1])}
    return found, [
        Fault(path.name, key, f"the header says {stated.get(key)}, written was {written.get(key)}")
        for key in dict.fromkeys((*written, *stated))
        if stated.get(key) != written.get(key)
    ]


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


def _judged(
    name: str, spans: list[Span], sums: list[int], record: Record, written: Mapping[str, Entry], told: bool
) -> tuple[bool, list[Fault]]:
    """Whether a file is as it was written; each tensor that is not, or the header where that says too little."""
    changed = "its bytes are not those that were written"
    whole = 0
    faults: list[Fault] = []
    for span, crc in zip(spans, sums, strict=True):
        whole = combine(whole, crc, span.nbytes)
        if span.name is not None and span.name in written and crc != written[span.name].crc32:
            faults.append(Fault(name, span.name, changed))
    if whole != record.crc32 and not faults and not told:
        faults.append(Fault(name, "header" if written else "", changed))
    return whole == record.crc32, faults

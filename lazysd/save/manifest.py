"""lazysd.manifest.json: what a save wrote. Every tensor's place and checksum, every file's, the plan, the versions.

It is written in pieces, one tensor a line, and ends in the checksum of all that stands before it; so it is read in
pieces too, and says by itself when it is damaged.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import FormatError, MissingShardError
from ..stores.journal import Finished, Notes
from .jobs import Shard

MANIFEST = "lazysd.manifest.json"
ENTRY_NBYTES = 400  # of a tensor's line in manifest and index, generously
_PIECE_NBYTES = 64 << 10
_TAIL = '\n "crc32": "{:08x}"\n}}\n'  # the checksum of everything before these bytes
_TAIL_NBYTES = len(_TAIL.format(0))
_TENSORS = b' "tensors": {\n'


class Record(NamedTuple):
    """What the manifest says of a file."""

    nbytes: int
    crc32: int


class Entry(NamedTuple):
    """What the manifest says of a tensor."""

    key: str
    code: str  # the safetensors dtype code
    shape: tuple[int, ...]
    shard: str
    crc32: int


class Manifest(NamedTuple):
    """What the manifest says of the save as a whole; `entries` reads what it says of the tensors."""

    facts: dict[str, Any]  # lazysd, torch, layout, family, plan, lossy
    files: dict[str, Record]  # every file of the folder but the manifest itself; shards only, before version 0.1.1


def format_manifest(
    facts: Mapping[str, Any], shards: Iterable[Shard], finished: Mapping[str, Finished], files: Mapping[str, Record]
) -> Iterator[bytes]:
    """The manifest, in pieces of some kilobytes.

    Args:
        facts: what is said of the save as a whole.
        shards: the plan's shards.
        finished: their checksums.
        files: the other files of the folder.
    """
    crc, held = 0, bytearray()
    for text in _lines(facts, list(shards), finished, files):
        held += text
        if len(held) >= _PIECE_NBYTES:
            crc = zlib.crc32(held, crc)
            yield bytes(held)
            held.clear()
    yield bytes(held) + _TAIL.format(zlib.crc32(held, crc)).encode()


def _lines(
    facts: Mapping[str, Any], shards: list[Shard], finished: Mapping[str, Finished], files: Mapping[str, Record]
) -> Iterator[bytes]:
    records = {shard.name: Record(shard.nbytes, finished[shard.name].crc32) for shard in shards} | dict(files)
    head = {
        **facts,
        "shards": {shard.name: f"{finished[shard.name].crc32:08x}" for shard in shards},
        "files": {name: {"nbytes": nbytes, "crc32": f"{crc:08x}"} for name, (nbytes, crc) in records.items()},
    }
    yield b"{\n" + b"".join(f" {json.dumps(name)}: {json.dumps(value)},\n".encode() for name, value in head.items())
    yield _TENSORS
    before = b""
    for shard in shards:
        checksums, at = finished[shard.name].checksums, 0
        for target in shard.targets:
            entry = {
                "dtype": target.node.code,
                "shape": target.node.dims,
                "shard": shard.name,
                "crc32": checksums[at : at + 4].hex(),
            }
            yield before + f"  {json.dumps(target.key)}: {json.dumps(entry)}".encode()
            before, at = b",\n", at + 4
    yield b"\n }," if before else b" },"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, its own checksum checked; reads it in pieces.

    Raises:
        MissingShardError: there is none.
        FormatError: it is damaged.
    """
    path = folder / MANIFEST
    if not os.path.isfile(path):
        raise MissingShardError(f"{folder} has no {MANIFEST}: lazysd did not write it, or the file is gone")
    if path.is_symlink():
        raise FormatError(f"{path} is a link, which no save makes")
    if not _is_whole(path):
        return _before_checksums(path)
    facts: dict[str, Any] = {}
    with _damage(path), open(path, "rb") as file:
        file.readline()
        for line in _until_tensors(file):
            facts |= json.loads(b"{" + line.rstrip(b",\n") + b"}")
        facts.pop("shards", None)  # files has them too
        return Manifest(facts, {name: _record(said) for name, said in facts.pop("files").items()})


def entries(folder: Path) -> Iterator[Entry]:
    """What the manifest says of every tensor, one by one, in the order of the shards. Call read_manifest before.

    Raises:
        FormatError: a line says something else.
    """
    path = folder / MANIFEST
    if not _is_whole(path):
        with _damage(path):
            yield from _parsed(json.loads(path.read_bytes())["tensors"])
        return
    with _damage(path), open(path, "rb") as file:
        for _ in _until_tensors(file):
            pass
        for line in file:
            if line == b" },\n":
                return
            if not line.startswith(b"  "):
                raise ValueError("a line that is no tensor's")
            yield from _parsed(json.loads(b"{" + line.rstrip(b",\n") + b"}"))


def recover(folder: Path) -> Notes:
    """What a folder's manifest says of finished shards: it stands in for a journal that has gone."""
    checksums: dict[str, bytearray] = {}
    try:
        found = read_manifest(folder)
        for entry in entries(folder):
            checksums.setdefault(entry.shard, bytearray()).extend(entry.crc32.to_bytes(4, "big"))
    except (MissingShardError, FormatError):
        return Notes(None, {}, {})
    finished = {
        name: Finished(*found.files[name], bytes(sums)) for name, sums in checksums.items() if name in found.files
    }
    return Notes(found.facts.get("plan"), {}, finished)


def _is_whole(path: Path) -> bool:
    """Whether a manifest ends in the checksum of all that stands before it."""
    left, crc = path.stat().st_size - _TAIL_NBYTES, 0
    with open(path, "rb") as file:
        while left > 0:
            piece = file.read(min(left, _PIECE_NBYTES))
            if not piece:
                return False
            crc, left = zlib.crc32(piece, crc), left - len(piece)
        return file.read() == _TAIL.format(crc).encode()


def _before_checksums(path: Path) -> Manifest:
    """A manifest of version 0.1.0, which had no checksum of its own; whatever else has none is damaged."""
    with _damage(path, "its checksum does not hold"):
        facts = json.loads(path.read_bytes())
        if facts["lazysd"] != "0.1.0" or "files" in facts or "crc32" in facts:
            raise ValueError
        if not isinstance(facts.pop("tensors"), dict):
            raise ValueError
        shards = facts.pop("shards")
        return Manifest(
            facts, {name: Record((path.parent / name).stat().st_size, int(crc, 16)) for name, crc in shards.items()}
        )


@contextmanager
def _damage(path: Path, what: str = "it is not what a save writes") -> Iterator[None]:
    """What a manifest that no save has written makes go wrong is a FormatError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise FormatError(f"{path} is damaged: {what} ({error!r}); what it says cannot be trusted") from error


def _until_tensors(file: BinaryIO) -> Iterator[bytes]:
    """The lines before those of the tensors."""
    for line in file:
        if line == _TENSORS:
            return
        yield line
    raise ValueError("it says nothing of tensors")


def _record(said: Any) -> Record:
    if not _is_size(said["nbytes"]):
        raise ValueError(f"{said['nbytes']!r} is no size")
    return Record(said["nbytes"], _checksum(said))


def _parsed(content: Mapping[str, Any]) -> Iterator[Entry]:
    for key, said in content.items():
        code, dims, shard = said["dtype"], said["shape"], said["shard"]
        if (type(code), type(dims), type(shard)) != (str, list, str) or not all(map(_is_size, dims)):
            raise ValueError(f"{said!r} is no tensor")
        yield Entry(key, code, tuple(dims), shard, _checksum(said))


def _checksum(said: Any) -> int:
    value = int(said["crc32"], 16)
    if value >> 32 or f"{value:08x}" != said["crc32"]:
        raise ValueError(f"{said['crc32']!r} is no checksum")
    return value


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0

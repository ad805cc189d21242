"""Files in memory: a checkpoint made of bytes, which opens, converts and saves like any other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ..errors import ClosedCheckpointError, MissingShardError, ReadError, UnsafePathError
from .base import Cost, File, Listing, Options, Parts, Place, Store, is_hidden, is_plain
from .strict_json import show

COST = Cost(gap_nbytes=8 << 10, block_nbytes=1 << 20, num_in_flight=1)  # a copy, as of warm pages of a local file
ONLY_NAME = "model.safetensors"  # of bytes that came without one


class MemoryFile(File):
    """Bytes with a name. They are never changed, so their checksum is what identifies them."""

    cost = COST

    def __init__(self, data: bytes, name: str = ONLY_NAME):
        self.data, self.name, self.path = data, name, f"memory:{name}"
        self._closed = False

    @property
    def size(self) -> int:
        return len(self.data)

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        return "memory", self.size, hashlib.sha256(self.data).hexdigest()

    def _fill(self, parts: Parts) -> None:
        if self._closed:
            raise ClosedCheckpointError(f"{self.path} belongs to a closed checkpoint; open it again to read")
        whole = memoryview(self.data)
        for buffer, offset in parts:
            if offset + len(buffer) > self.size:
                missing = offset + len(buffer) - self.size
                raise ReadError(
                    f"{self.path} ends at byte {self.size}, {missing} bytes short of what its header promises"
                )
            buffer[:] = whole[offset : offset + len(buffer)]

    def check_unchanged(self) -> None:
        """Bytes cannot change."""

    def close(self) -> None:
        self._closed = True


class MemoryStore(Store):
    """A folder of bytes."""

    path = "memory:"

    def __init__(self, files: Mapping[str, bytes]):
        for name in files:
            if not isinstance(name, str) or not is_plain(name):
                raise UnsafePathError(f"cannot open files in memory: expected a plain file name, found {show(name)}")
        self.files = {name: bytes(data) for name, data in files.items()}  # immutable, whatever it was

    def list(self, deep: bool = True) -> Listing:
        names = [name for name in sorted(self.files) if deep or "/" not in name]
        hidden = {name: "hidden" for name in names if _is_below_hidden(name)}
        return Listing(tuple(name for name in names if name not in hidden), hidden)

    def has(self, name: str) -> bool:
        return name in self.files

    def open(self, name: str) -> MemoryFile:
        if not is_plain(name):
            raise UnsafePathError(f"memory: the file {show(name)}: expected a plain name; correct the index")
        if name not in self.files:
            raise MissingShardError(f"memory: the file {show(name)} is missing; pass it along with the others")
        return MemoryFile(self.files[name], name)


class Memory:
    """Opens bytes, and mappings from file names to bytes."""

    rank = 10

    def place(self, path: Any, options: Options) -> Place | None:
        if isinstance(path, (bytearray, memoryview)) or (isinstance(path, bytes) and _is_content(path)):
            return Place(MemoryStore({ONLY_NAME: bytes(path)}), ONLY_NAME)
        if isinstance(path, Mapping):
            return Place(MemoryStore(path))
        return None


def _is_content(data: bytes) -> bool:
    """Whether bytes are a file rather than the name of one: no path holds a NUL, and a header's length always does."""
    return b"\0" in data[:64]


def _is_below_hidden(name: str) -> bool:
    return any(is_hidden(part) for part in name.split("/"))


STORE = Memory()

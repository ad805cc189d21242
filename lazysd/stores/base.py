"""What a store is: a folder of named files, wherever their bytes lie, and files that are read by offset.

A new place of bytes is one file in this folder with a `STORE` (see `stores.places`); it passes the suite in
`lazysd.testing.conformance.stores`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

Part = tuple[memoryview, int]  # (flat writable bytes, offset in the file)


class Gather(ABC):
    """Reads that a kernel asks the system for by itself, and whose bytes it puts in their places, read by read."""

    @abstractmethod
    def __iter__(self) -> Iterator[Part]:
        """What is read, for whoever counts: the buffer is the same one again and again."""

    @abstractmethod
    def by(self, fd: int) -> tuple[int, int, int] | None:
        """Do it all. Where it failed: (offset, bytes missing from there, errno, 0 where the file ended)."""


Parts = Sequence[Part] | Gather  # the latter for files with a descriptor


class Cost(NamedTuple):
    """What reading a file costs, as far as whoever cuts reads has to know."""

    gap_nbytes: int  # unwanted bytes worth reading along, rather than asking a second time
    block_nbytes: int  # one request asks for no more, and a reader that needs scratch memory takes that much
    num_in_flight: int  # requests that make each other no slower


class File(ABC):
    """Bytes that tensors are read from, at any offset, from any thread. Opened lazily; nothing is held until then.

    Equal by identity of the object. `read` and `view` are for tensor data; `text` is for headers and JSON.
    """

    name: str  # in its store, "/" between folders
    path: str  # as messages and `LazyTensor.reads()` name it
    cost: Cost
    has_descriptor: ClassVar[bool] = False  # `read` takes a Gather

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of the file."""

    @property
    @abstractmethod
    def identity(self) -> tuple[Any, ...]:
        """What makes it the same file as before: equal tuples mean equal bytes. Hashable, with a stable repr."""

    def read(self, parts: Parts) -> None:
        """Fill each buffer with the file's bytes from its offset; parts may be read in any order, or at once.

        Raises:
            ReadError: the file ends early or cannot be read.
            SourceChangedError: it is another file than the one that was opened.
            MissingShardError, ClosedCheckpointError: it is gone; it was closed.
        """
        self._fill(parts)

    def view(self, offset: int, nbytes: int) -> memoryview | None:
        """A zero-copy view of a byte range, None where this store has none. Writing to it never changes the file."""
        return self._map(offset, nbytes) if nbytes else None

    def text(self, offset: int, nbytes: int) -> bytes:
        """Bytes that are no tensor data. The caller has checked `nbytes` against the file's size."""
        return self.texts([(offset, nbytes)])[0]

    def texts(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """As `text`, of many (offset, nbytes) at once."""
        held = [bytearray(nbytes) for _, nbytes in ranges]
        parts = [(memoryview(buffer), offset) for buffer, (offset, nbytes) in zip(held, ranges, strict=True) if nbytes]
        if parts:
            self._fill(parts)
        return [bytes(buffer) for buffer in held]

    @abstractmethod
    def _fill(self, parts: Parts) -> None:
        """See `read`."""

    def _map(self, offset: int, nbytes: int) -> memoryview | None:
        """See `view`; `nbytes` is not 0."""
        return None

    @abstractmethod
    def check_unchanged(self) -> None:
        """Raise SourceChangedError unless the file is still the one that was opened."""

    @abstractmethod
    def close(self) -> None:
        """Let go of handles. Views handed out stay valid; later reads raise ClosedCheckpointError."""


class Listing(NamedTuple):
    """What a folder holds, down to its subfolders."""

    files: tuple[str, ...]  # sorted names that can be opened, "/" between folders; none is hidden
    others: Mapping[str, str]  # sorted names that cannot or need not be -> what they are: "a link out of the folder"
    is_whole: bool = True  # False where a store cannot list, and only usual names were looked for


class Store(ABC):
    """A folder of named files."""

    path: str  # as messages name it

    @abstractmethod
    def list(self, deep: bool = True) -> Listing:
        """Every file below the folder, or only those in it. Reads no file."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether a file of that very name is there, hidden ones included; links out of the folder count."""

    def unfinished(self) -> tuple[int, ...]:
        """Bytes so far of each download into the folder that is not finished, where a client's files tell."""
        return ()

    @abstractmethod
    def open(self, name: str) -> File:
        """A file of the folder.

        Raises:
            MissingShardError: no such file.
            UnsafePathError: the name, or a link, leads out of the folder.
            FormatError: no regular file.
        """


class Place(NamedTuple):
    """What a user named: a folder, or one file in it."""

    store: Store
    name: str | None = None  # None: the folder itself

    def describe(self) -> str:
        """As messages call it."""
        return self.store.path if self.name is None else self.store.open(self.name).path


class Opens(Protocol):
    """A member of this room: turns what a user passes to `lazysd.open` into a place, or says that it is not its own."""

    rank: ClassVar[int]  # members are asked in this order

    def place(self, path: Any, options: Options) -> Place | None:
        """The place that `path` names, None where another member has to know."""
        ...


class Options(NamedTuple):
    """How a user wants files to be opened."""

    io: str = "mmap"  # "mmap": views where the store has them; "pread": always copies
    follow_links: bool = False


def is_plain(name: str) -> bool:
    """Whether a name stays inside its folder, whatever the system: relative, normalised, no backslash, no NUL."""
    parts = name.split("/")
    return bool(name) and not any(part in ("", ".", "..") for part in parts) and "\\" not in name and "\0" not in name


def is_hidden(name: str) -> bool:
    """Whether the last part of a name begins with a dot ("._x" is what macOS leaves beside "x")."""
    return os.path.basename(name).startswith(".")

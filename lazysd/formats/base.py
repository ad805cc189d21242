"""What a container is: files of one kind that hold named tensors, read into one model that knows no format.

A new kind is one file (or folder) beside this one with a `CONTAINER` (see `formats.containers`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import ClassVar, NamedTuple, Protocol

from ..errors import MemoryBudgetError
from ..facts import Absent
from ..sizes import format_nbytes
from ..stores.base import File, Listing, Place

# Names of files that hold weights, or say where weights are: never copied as they are beside converted ones.
WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".distcp", ".gguf", ".ggml", ".h5", ".msgpack", ".npz"),
    *(".onnx", ".onnx_data", ".tflite", ".ot", ".nemo", ".safetensors.part"),
)


class Chunk(NamedTuple):
    """Part of a tensor, somewhere in a file."""

    file: File
    offset: int  # of its first element, in bytes
    starts: tuple[int, ...]  # where the part lies in the tensor; empty where it is all of it
    sizes: tuple[int, ...]
    strides: tuple[int, ...] | None = None  # in the file, in elements; None: dense, the last axis innermost


class StoredTensor(NamedTuple):
    """A tensor as its files hold it."""

    code: str  # the safetensors dtype code, a key of dtypes.DTYPES
    dims: tuple[int, ...]
    chunks: tuple[Chunk, ...]  # those that hold elements, in no particular order; nobody has checked that they fit


class Kind(NamedTuple):
    """A dtype and a shape. A checkpoint has many tensors and few of these, which they share."""

    code: str  # the safetensors dtype code, a key of dtypes.DTYPES
    dims: tuple[int, ...]
    nbytes: int


class Columns(NamedTuple):
    """Tensors that lie whole and dense in one file, column by column."""

    file: File
    keys: Sequence[str]
    starts: Sequence[int]  # offset of each tensor's first byte
    kinds: Sequence[Kind]


class WholeTensors(Mapping[str, StoredTensor]):
    """Tensors in columns, one set for each file: of a million keys, no object is made until somebody asks for it."""

    def __init__(self, columns: Sequence[Columns]):
        self.columns = columns

    @cached_property
    def _places(self) -> dict[str, tuple[Columns, int]]:
        return {key: (one, number) for one in self.columns for number, key in enumerate(one.keys)}

    def __getitem__(self, key: str) -> StoredTensor:
        one, number = self._places[key]
        code, dims, _ = one.kinds[number]
        return StoredTensor(code, dims, (Chunk(one.file, one.starts[number], (), dims),))

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(one.keys for one in self.columns)

    def __len__(self) -> int:
        return sum(len(one.keys) for one in self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(kind.nbytes * count for one in self.columns for kind, count in Counter(one.kinds).items())


class Contents(NamedTuple):
    """What a container found. No tensor data has been read."""

    tensors: Mapping[str, StoredTensor]
    files: tuple[File, ...]  # that the tensors lie in
    metadata: dict[str, str]
    used: frozenset[str]  # names of the folder's files that went into this
    remarks: tuple[str, ...] = ()  # sentences for the user: what is left out, and which evidence decided
    named: frozenset[str] = frozenset()  # files that a remark names, and that need no other
    absent: Absent | None = None  # shards that belong to it and are not there; `opening` decides what comes of it
    opening_nbytes: int = 0  # of memory that reading it took beyond its tensors; objects made later use it again


class Folder:
    """What a user named, as containers see it: a folder, or one file of it."""

    def __init__(self, place: Place, max_memory: int | None = None):
        self.store, self.named, self.max_memory = place.store, place.name, max_memory

    def check_room(self, nbytes: int, what: str) -> None:
        """Before so much memory is taken to read `what`. Raises MemoryBudgetError where the user allows less."""
        if self.max_memory is not None and self.max_memory < nbytes:
            raise MemoryBudgetError(
                f"max_memory {format_nbytes(self.max_memory)} is too little to read {what}; "
                f"the smallest that would do is {-(-nbytes // 1_000_000)}MB"
            )

    @cached_property
    def listing(self) -> Listing:
        """Every file below the folder."""
        return self.store.list()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Files of the folder itself that are not hidden."""
        files, others, _ = self.store.list(deep=False)
        return tuple(sorted(name for name in (*files, *others) if not name.startswith(".")))

    @property
    def path(self) -> str:
        """As messages call it."""
        return self.store.path if self.named is None else f"{self.store.path.rstrip('/')}/{self.named}"

    def ending(self, *suffixes: str) -> list[str]:
        """Files of the folder itself whose names end so."""
        return [name for name in self.names if name.endswith(suffixes)]


class Container(Protocol):
    """A kind of files that hold tensors."""

    name: ClassVar[str]
    rank: ClassVar[int]  # where a folder holds several kinds, the lowest rank is read

    def recognises(self, folder: Folder) -> bool:
        """Whether the file, or the folder, that the user named is of this kind. Looks at names only."""
        ...

    def lacks(self, folder: Folder) -> Absent | None:
        """Which of its files are missing, as far as names and indexes say. Raises as `read` does."""
        ...

    def read(self, folder: Folder) -> Contents:
        """What it holds. Reads headers and indexes, and no tensor data.

        Raises:
            FormatError, UnsupportedCheckpointError, UnsafePathError, MissingShardError, ReadError.
        """
        ...


class Row(NamedTuple):
    """A tensor to write: dense, its last axis innermost."""

    key: str
    code: str
    dims: tuple[int, ...]
    nbytes: int


class StoredRows(NamedTuple):
    """Where a file has its tensors."""

    starts: list[int]  # first byte of each, in the order given
    around_nbytes: int  # of all that is no tensor data
    nbytes: int  # of the whole file


class Placed(NamedTuple):
    """A tensor of a result."""

    file: str
    row: Row
    start: int  # its first byte in the file


Around = Iterator[tuple[int, bytes]]  # (offset, bytes), in file order; with the tensors' data they fill the file


class Sink(Protocol):
    """A kind of files to write. It says where bytes go; who moves them, syncs and renames knows no format."""

    name: ClassVar[str]
    index_row_nbytes: ClassVar[int]  # memory that a tensor takes while `index` is written, all of them at a time

    def file_name(self, stem: str, number: int, total: int) -> str:
        """Of file `number` (from 1) of `total`."""
        ...

    def lay_out(self, rows: Iterable[Row], metadata: Mapping[str, str]) -> StoredRows:
        """Where a file has these tensors. Raises FormatError for what the format cannot hold."""
        ...

    def around(
        self, rows: Iterable[Row], metadata: Mapping[str, str], checksums: Sequence[int], around_nbytes: int
    ) -> Around:
        """What stands around the tensors' data, in pieces of some kilobytes: `around_nbytes` in all, as laid out.

        The CRC-32s of the tensors are known by now; no length depends on them.
        """
        ...

    def index(self, stem: str, placed: Iterable[Placed], num_files: int) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Files that say where the tensors are, written last: (name, content in pieces)."""
        ...


def plural(count: int, what: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def sentence(count: int, what: str, names: Iterable[str]) -> str:
    """ "3 tensors: 'a', 'b', 'c'": a count, and the first few names."""
    from ..stores.strict_json import listing

    return f"{plural(count, what)}: {listing(list(names))}"

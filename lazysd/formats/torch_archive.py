"""The zip archives of torch.save: their pickle, and where the bytes of each storage lie.

Source: torch 2.13, serialization.py; the zip format (APPNOTE 4.3).
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

from .. import dtypes
from ..errors import FormatError, UnsupportedCheckpointError
from ..stores.base import File
from ..stores.strict_json import show
from .pickles import TENSORS, Name, sizes_of, unpickle

MAX_RECORD_NBYTES = 1 << 28  # of the pickle, which takes about 200 bytes a tensor
_LOCAL_NBYTES = 30  # of a local header, without name and extra field
_PAGE_NBYTES = 64 << 10
STORAGES = {
    "BoolStorage": "BOOL", "ByteStorage": "U8", "CharStorage": "I8", "ShortStorage": "I16", "IntStorage": "I32",
    "LongStorage": "I64", "HalfStorage": "F16", "BFloat16Storage": "BF16", "FloatStorage": "F32",
    "DoubleStorage": "F64", "ComplexFloatStorage": "C64",
}  # fmt: skip


class Stored(NamedTuple):
    """A tensor of an archive's pickle: a strided view of a storage."""

    storage: str  # the name of its record, below data/
    code: str
    first: int  # element of the storage
    dims: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    storage_nbytes: int  # that the pickle states


class Archive:
    """An archive of torch.save inside a file. Reads its directory; storages are never read."""

    def __init__(self, file: File, start: int, nbytes: int, where: str, step: str):
        self.file, self.start, self.nbytes, self.where, self.step = file, start, nbytes, where, step
        with self._errors(), zipfile.ZipFile(Window(file, start, nbytes)) as archive:
            self._entries = {entry.filename.split("/", 1)[-1]: entry for entry in archive.infolist()}
            if len(self._entries) != len(archive.infolist()):  # programs differ in which of two they read
                raise FormatError(f"{where}: two records of its archive have the same name; {step}")

    def _errors(self) -> _NamedErrors:
        return _NamedErrors(self.where, self.step)

    def has(self, name: str) -> bool:
        """Whether there is such a record."""
        return name in self._entries

    def pickle(self) -> Any:
        """What the archive's pickle says; see `pickles`."""
        names = ["data.pkl", *(["byteorder"] if self.has("byteorder") else [])]
        for name in names:
            if name in self._entries and not self._is_plain(name, MAX_RECORD_NBYTES):
                raise FormatError(f"{self.where}: its {name} is packed or too long; {self.step}")
        with self._errors():
            found = self.places(names)
            record, *order = (self.file.text(at, size) for at, size in found)
        if order and order[0] != b"little":
            raise UnsupportedCheckpointError(f"{self.where}: written on a big-endian machine; save it again on another")
        return unpickle(record, self.where, TENSORS, self.step)

    def places(self, names: Iterable[str]) -> list[tuple[int, int]]:
        """(offset in the file, bytes) of records that are stored as they are."""
        entries = [self._entries[name] for name in names]
        at = [self.start + entry.header_offset for entry in entries]
        if any(entry.header_offset + _LOCAL_NBYTES > self.nbytes for entry in entries):
            raise FormatError(f"{self.where}: its archive ends early; {self.step}")
        found = []
        for entry, raw in zip(entries, self.file.texts([(here, _LOCAL_NBYTES) for here in at]), strict=True):
            magic, name_nbytes, extra_nbytes = struct.unpack("<4s22xHH", raw)
            inside = entry.header_offset + _LOCAL_NBYTES + name_nbytes + extra_nbytes
            if magic != b"PK\x03\x04" or inside + entry.file_size > self.nbytes:
                raise FormatError(f"{self.where}: its archive ends early; {self.step}")
            found.append((self.start + inside, entry.file_size))
        return found

    def storages(self, tensors: Iterable[Stored]) -> dict[str, tuple[int, int]]:
        """Of each storage of some tensors, (offset in the file, bytes)."""
        wanted: dict[str, int] = {}
        for tensor in tensors:
            name, nbytes = tensor.storage, tensor.storage_nbytes
            if f"data/{name}" not in self._entries or not self._is_plain(f"data/{name}", self.nbytes):
                raise UnsupportedCheckpointError(f"{self.where}: {show(name)} is not stored as it is; save it again")
            if {wanted.setdefault(name, nbytes), self._entries[f"data/{name}"].file_size} != {nbytes}:
                raise FormatError(f"{self.where}: storage {show(name)} has another size than is stated; {self.step}")
        return dict(zip(wanted, self.places(f"data/{name}" for name in wanted), strict=True))

    def _is_plain(self, name: str, most_nbytes: int) -> bool:
        entry = self._entries[name]
        return (
            entry.compress_type == zipfile.ZIP_STORED
            and not entry.flag_bits & 1  # encrypted
            and entry.compress_size == entry.file_size <= most_nbytes
        )


def stored_tensor(value: Any) -> Stored | None:
    """The tensor that a value of the pickle stands for; None where it is something else.

    Raises:
        ValueError, TypeError, IndexError, AttributeError: it is one that no torch writes.
        UnsupportedCheckpointError: of a dtype that safetensors cannot hold.
    """
    if not isinstance(value, Name) or value.name != "tensor":
        return None
    storage, first, dims, strides, *dtype = value.args
    if not isinstance(storage, Name) or storage.name != "storage" or not isinstance(storage.args[2], str):
        raise ValueError(f"expected a storage, found {show(getattr(storage, 'name', storage))}")
    word = dtype[0].name if dtype else storage.args[1].name
    code = next((kind.code for kind in dtypes.DTYPES.values() if kind.torch_name == word), STORAGES.get(word))
    if code is None:
        raise UnsupportedCheckpointError(f"it is of dtype {show(word)}, which safetensors cannot hold")
    shape, pitches = sizes_of(dims), sizes_of(strides)
    if len(shape) != len(pitches):
        raise ValueError(f"expected {len(shape)} strides, found {len(pitches)}")
    start, held = sizes_of((first, storage.args[4]))
    kind = STORAGES.get(storage.args[1].name, "U8")  # an UntypedStorage counts bytes
    return Stored(storage.args[2], code, start, shape, pitches, held * dtypes.itemsize(kind))


def span(dims: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last one, gaps included."""
    if not prod(dims):
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(dims, strides, strict=True))


class _NamedErrors:
    """Turns whatever a damaged archive makes zipfile raise into FormatError."""

    def __init__(self, where: str, step: str):
        self.where, self.step = where, step

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        odd = (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, UnicodeError, struct.error, NotImplementedError)
        if isinstance(error, (*odd, OverflowError)) or type(error) in (OSError, ValueError):
            raise FormatError(f"{self.where}: no archive of torch.save ({show(repr(error))}); {self.step}") from error


class Window(io.RawIOBase):
    """Part of a file as a file of its own, read a page at a time: directories are read in small steps."""

    def __init__(self, file: File, start: int, nbytes: int):
        self.file, self.start, self.nbytes, self.at = file, start, nbytes, 0
        self._page, self._page_at = b"", 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(0, offset + (0, self.at, self.nbytes)[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.nbytes - self.at)
        wanted = left if size is None or size < 0 else min(size, left)
        if not self._page_at <= self.at <= self.at + wanted <= self._page_at + len(self._page):
            nearby = max(0, min(self.at, self.nbytes - _PAGE_NBYTES))  # towards the end, where the directory lies
            if self.at + wanted > nearby + _PAGE_NBYTES:
                nearby = self.at
            length = min(max(wanted, _PAGE_NBYTES), self.nbytes - nearby)
            self._page, self._page_at = self.file.text(self.start + nearby, length), nearby
        data = self._page[self.at - self._page_at :][:wanted]
        self.at += len(data)
        return data

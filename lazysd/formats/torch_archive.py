"""A tensor in a torch.save archive: where its bytes lie. Its pickle is read by name only; no code of it runs.

Source: torch 2.13, serialization.py and _utils.py; the zip format (APPNOTE 4.3).
"""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from math import prod
from typing import Any, NamedTuple

from .. import dtypes
from ..errors import FormatError, UnsupportedCheckpointError
from ..stores.strict_json import show

AGAIN = "the checkpoint is damaged or not from dcp.save; save it again"
MAX_RECORD_NBYTES = 1 << 20  # of the pickle beside a chunk's data, which takes a few hundred bytes
MAX_AXES = 64
_PLAIN = re.compile(r"(?:bool|(?:complex|float|bfloat|q?u?int|bits)\w*|\w+Storage)", re.ASCII)  # dtypes, storages
_STORAGES = {
    "BOOL": "BoolStorage", "U8": "ByteStorage", "I8": "CharStorage", "I16": "ShortStorage", "I32": "IntStorage",
    "I64": "LongStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "F32": "FloatStorage",
    "F64": "DoubleStorage", "C64": "ComplexFloatStorage",
}  # fmt: skip


class Name(NamedTuple):
    """A name that a pickle refers to, or what it makes of arguments: a dtype, a storage, a tensor."""

    name: str
    args: Any = ()


class _Unpickler(pickle._Unpickler):
    """Reads records, torch.Size and dtypes; refuses every other name.

    The unpickler written in Python: the one in C takes 32 GB of memory where five bytes of a pickle ask for it.
    """

    def __init__(self, data: bytes, where: str, names: dict[tuple[str, str], Any]):
        super().__init__(io.BytesIO(data))
        self.where, self.names = where, names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.names:
            return self.names[module, name]
        if module == "torch" and _PLAIN.fullmatch(name):
            return Name(name)
        raise UnsupportedCheckpointError(
            f"{self.where}: its pickle asks for {show(f'{module}.{name}')}, which is no part of "
            "torch.distributed.checkpoint's metadata or of a plain tensor; lazysd does not run code from checkpoints"
        )

    def persistent_load(self, ident: Any) -> Any:
        return Name("storage", ident)


def unpickle(data: bytes, where: str, names: dict[tuple[str, str], Any]) -> Any:
    try:
        return _Unpickler(data, where, names).load()
    except UnsupportedCheckpointError:
        raise
    except Exception as error:
        raise FormatError(f"{where}: cannot be read ({type(error).__name__}: {show(str(error))}); {AGAIN}") from error


def sizes_of(values: Any) -> tuple[int, ...]:
    """Sizes, offsets: a few whole numbers that are not negative."""
    found = tuple(values)
    if len(found) > MAX_AXES or any(type(value) is not int or value < 0 for value in found):
        raise ValueError(f"expected sizes, found {show(list(found))}")
    return found


def archive_data(window: Window, where: str, code: str, sizes: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Of a torch.save archive that holds one dense tensor: the offset of its bytes, the order of its axes in them."""
    try:
        with zipfile.ZipFile(window) as archive:
            entries = {entry.filename.split("/", 1)[-1]: entry for entry in archive.infolist()}
            for name in ("data.pkl", "byteorder"):
                if name in entries and not _is_plain(entries[name], MAX_RECORD_NBYTES):
                    raise FormatError(f"{where}: its {name} is packed or too long; {AGAIN}")
            record = archive.read(entries["data.pkl"])
            order = archive.read(entries["byteorder"]) if "byteorder" in entries else b"little"
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, RuntimeError, UnicodeError, struct.error) as error:
        raise FormatError(f"{where}: no archive of torch.save ({show(repr(error))}); {AGAIN}") from error
    names: dict[tuple[str, str], Any] = {
        ("torch._utils", "_rebuild_tensor_v2"): lambda *args: Name("tensor", args[:4]),
        ("torch._utils", "_rebuild_tensor_v3"): lambda *args: Name("tensor", (*args[:4], args[6])),
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("collections", "OrderedDict"): OrderedDict,
        ("torch.storage", "UntypedStorage"): Name("UntypedStorage"),
    }
    tensor = unpickle(record, where, names)
    if not isinstance(tensor, Name) or tensor.name != "tensor":
        raise FormatError(f"{where}: holds no plain tensor; {AGAIN}")
    storage, first, shape, strides, *dtype = tensor.args
    typed = dtype[0].name if dtype else storage.args[1].name
    if sizes_of(shape) != sizes or typed != (dtypes.DTYPES[code].torch_name if dtype else _STORAGES.get(code)):
        raise FormatError(f"{where}: expected {code} {list(sizes)}, found {typed} {show(list(shape))}; {AGAIN}")
    if order != b"little":
        raise UnsupportedCheckpointError(f"{where}: written on a big-endian machine; save it again on another")
    axes = _dense_order(sizes, sizes_of(strides))
    data = entries.get(f"data/{storage.args[2]}")
    start, expected = sizes_of((first,))[0] * dtypes.itemsize(code), prod(sizes) * dtypes.itemsize(code)
    if axes is None or data is None or not _is_plain(data, window.nbytes) or start + expected > data.file_size:
        raise UnsupportedCheckpointError(f"{where}: the tensor is not stored whole and dense; save it again")
    window.seek(data.header_offset)
    header = struct.unpack("<4s22xHH", window.read(30))
    inside = data.header_offset + 30 + header[1] + header[2] + start
    if header[0] != b"PK\x03\x04" or inside + expected > window.nbytes:
        raise FormatError(f"{where}: its archive ends early; {AGAIN}")
    return inside, axes


def _is_plain(entry: zipfile.ZipInfo, most_nbytes: int) -> bool:
    return entry.compress_type == zipfile.ZIP_STORED and entry.file_size <= most_nbytes


def _dense_order(sizes: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes from the widest stride to the narrowest, None where elements do not lie side by side."""
    order = sorted(range(len(sizes)), key=lambda axis: (sizes[axis] > 1, -strides[axis]))  # length 1: any place will do
    pitch = 1
    for axis in reversed(order):
        if sizes[axis] > 1 and strides[axis] != pitch:
            return None
        pitch *= sizes[axis]
    natural = tuple(range(len(sizes)))
    long = [axis for axis in order if sizes[axis] > 1]
    return natural if long == sorted(long) else tuple(order)


class Window(io.RawIOBase):
    """Part of a file as a file of its own."""

    def __init__(self, file: Any, start: int, nbytes: int):
        self.file, self.start, self.nbytes, self.at = file, start, nbytes, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(0, offset + (0, self.at, self.nbytes)[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.nbytes - self.at)
        self.file.seek(self.start + self.at)
        data: bytes = self.file.read(left if size is None or size < 0 else min(size, left))
        self.at += len(data)
        return data

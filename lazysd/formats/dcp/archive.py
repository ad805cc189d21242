"""One tensor as an archive of torch.save: what stands before and behind its data. Built without torch.

Source: the zip format (APPNOTE 4.3); torch 2.13, serialization.py: the records `data.pkl`, `byteorder`, `version` and
`data/0`, all of them stored as they are; torch/_utils.py: `_rebuild_tensor_v2`, and `_rebuild_tensor_v3` for dtypes
without a storage class of their own.
"""

from __future__ import annotations

import struct
import zlib
from math import prod
from typing import NamedTuple

from ... import dtypes
from ...graph.boxes import row_major
from ..torch_archive import STORAGES

ALIGN_NBYTES = 64  # of a tensor's data, as torch itself aligns it
_ZIP64 = 0xFFFFFFFF  # sizes and offsets from here on stand in an extra field
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
_PADDING = b"FB"  # the extra field that torch pads with
_CLASSES = {code: name for name, code in STORAGES.items()}


class Frame(NamedTuple):
    """What stands around a tensor's data in its archive."""

    before: bytes
    behind: bytes


class _Record(NamedTuple):
    name: bytes
    nbytes: int
    crc32: int
    offset: int  # of its local header


def frame(code: str, dims: tuple[int, ...], nbytes: int, checksum: int) -> Frame:
    """The frame of a dense tensor; its length depends on code and dims alone. `checksum`: CRC-32 of the data."""
    records: list[_Record] = []
    before = b""
    for name, text in ((b"archive/data.pkl", _pickle(code, dims)), (b"archive/byteorder", b"little"),
                       (b"archive/version", b"3\n")):  # fmt: skip
        records.append(_Record(name, len(text), zlib.crc32(text), len(before)))
        before += _local(records[-1], 0) + text
    records.append(_Record(b"archive/data/0", nbytes, checksum, len(before)))
    before += _local(records[-1], len(before))
    directory = b"".join(map(_central, records))
    start = len(before) + nbytes
    return Frame(before, directory + _end(len(records), len(directory), start))


def _local(record: _Record, align_from: int) -> bytes:
    """A local header; with `align_from`, padded so that what follows is aligned."""
    extra = struct.pack("<HHQQ", 1, 16, record.nbytes, record.nbytes) if record.nbytes >= _ZIP64 else b""
    if align_from:
        bare = align_from + 30 + len(record.name) + len(extra) + 4
        extra += _PADDING + struct.pack("<H", -bare % ALIGN_NBYTES) + b"Z" * (-bare % ALIGN_NBYTES)
    size = min(record.nbytes, _ZIP64)
    fixed = struct.pack("<HHHHHIIIHH", 45, 0, 0, 0, 0x21, record.crc32, size, size, len(record.name), len(extra))
    return _LOCAL + fixed + record.name + extra


def _central(record: _Record) -> bytes:
    extra = struct.pack("<HHQQ", 1, 16, record.nbytes, record.nbytes) if record.nbytes >= _ZIP64 else b""
    size = min(record.nbytes, _ZIP64)
    fixed = struct.pack(
        "<HHHHHHIIIHHHHHII", 45, 45, 0, 0, 0, 0x21, record.crc32, size, size, len(record.name), len(extra), 0, 0, 0, 0,
        record.offset,
    )  # fmt: skip
    return _CENTRAL + fixed + record.name + extra


def _end(count: int, nbytes: int, start: int) -> bytes:
    """The end of the directory, which begins at `start`; the offset is that of an archive that begins at 0."""
    end = b""
    if start >= _ZIP64:
        end = _END64 + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, nbytes, start)
        end += _LOCATOR + struct.pack("<IQI", 0, start + nbytes, 1)
    return end + _END + struct.pack("<HHHHIIH", 0, 0, count, count, nbytes, min(start, _ZIP64), 0)


def _pickle(code: str, dims: tuple[int, ...]) -> bytes:
    """A pickle of protocol 2 that rebuilds a contiguous tensor from storage 0."""
    numel, own = prod(dims), code in _CLASSES
    kind = _name("torch", _CLASSES[code]) if own else _name("torch.storage", "UntypedStorage")
    size = numel if own else numel * dtypes.itemsize(code)
    storage = b"(" + _text("storage") + kind + _text("0") + _text("cpu") + _number(size) + b"tQ"
    shape, strides = (b"(" + b"".join(map(_number, values)) + b"t" for values in (dims, row_major(dims)))
    hooks = _name("collections", "OrderedDict") + b")R"
    rest = b"" if own else _name("torch", str(dtypes.DTYPES[code].torch_name))
    function = _name("torch._utils", "_rebuild_tensor_v2" if own else "_rebuild_tensor_v3")
    return b"\x80\x02" + function + b"(" + storage + b"K\x00" + shape + strides + b"\x89" + hooks + rest + b"tR."


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _number(value: int) -> bytes:
    if value < 256:
        return b"K" + bytes([value])
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw

"""The header of a safetensors file: a strict parser that keeps byte offsets, and its inverse.

Source: the safetensors format (8 bytes little-endian length, JSON, data without holes). We refuse what safetensors 0.8
lets through and two readers could understand differently: repeated names and entries written as lists.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import FormatError
from ...stores.base import File
from ...stores.strict_json import parse_json, refuse_foreign, repeated, show
from .canonical import read_canonical
from .entries import LIMIT, METADATA, Header, Kind, sized

MAX_HEADER_NBYTES = 100_000_000  # the limit of safetensors itself
_FIELDS = {"dtype", "shape", "data_offsets"}
_MINUS_ZERO = re.compile(rb"[\[,:\s]-0[\],}\s]")  # as a number, or inside of a name: a second look tells
_AGAIN = "the file is damaged or its writer is: fetch or write it again"


def read_header(file: File) -> Header:
    """Read and check the header of a safetensors file; reads no tensor data.

    Returns:
        Every tensor with its absolute byte range. The ranges are disjoint and cover the file to its last byte.

    Raises:
        FormatError: anything the format does not allow, with the tensor and what was expected and found.
        UnsupportedCheckpointError: a pickle, GGUF, Git LFS pointer, HDF5, numpy or gzip file.
        MissingShardError, ReadError: absent, or not readable.
    """
    try:
        raw = _read_raw(file)
        return read_canonical(raw, 8 + len(raw), file.size) or read_strictly(raw, 8 + len(raw), file.size)
    except FormatError as error:
        raise FormatError(f"cannot read {file.path}: {error}; {_AGAIN}") from None


def _read_raw(file: File) -> bytes:
    """The JSON bytes. Nothing is allocated by a claimed size before it is held against the real one."""
    head = file.text(0, min(file.size, 64))
    nbytes = int.from_bytes(head[:8], "little")
    fits = len(head) >= 8 and nbytes <= min(file.size - 8, MAX_HEADER_NBYTES)
    # The length of a header of 640 bytes is also how a pickle begins: what can be a header is never taken for one.
    if not fits or (head[8:9] != b"{" and head[:1] != b"\x80"):
        refuse_foreign(head, file.path)
    if file.size < 8:
        raise FormatError(f"expected at least the 8 bytes of the header length, found {file.size}")
    if nbytes > MAX_HEADER_NBYTES:
        raise FormatError(f"expected a header of at most {MAX_HEADER_NBYTES} bytes, found a length of {nbytes}")
    if not fits:
        raise FormatError(f"truncated: expected a header of {nbytes} bytes, found {file.size - 8} after its length")
    raw = file.text(8, nbytes)
    if not raw.startswith(b"{"):
        raise FormatError(f"expected a header that starts with '{{', found {raw[:8]!r}")
    return raw


def read_strictly(raw: bytes, data_start: int, file_nbytes: int) -> Header:
    """The header whose JSON is `raw`, however it is written. Raises FormatError."""
    if b"-0" in raw and _MINUS_ZERO.search(raw):
        parse_json(raw, tuple, integer=_no_minus_zero)
    top = parse_json(raw, tuple)  # objects become tuples of pairs, at the speed of C; JSON lists stay lists
    return _build(top, data_start, file_nbytes)


def _no_minus_zero(text: str) -> int:
    if text == "-0":
        raise FormatError("expected whole numbers, found -0, which safetensors refuses")
    return int(text)


def _build(top: tuple[tuple[str, Any], ...], data_start: int, file_nbytes: int) -> Header:
    metadata: dict[str, str] = {}
    found: list[tuple[int, int, str, Kind]] = []
    for key, fields in top:
        if key == METADATA:
            metadata = _metadata(fields)
        else:
            found.append(_entry(key, fields, data_start))
    if len({key for key, _ in top}) != len(top):
        raise FormatError(f"tensor {show(repeated(top))}: expected once, found twice")
    found.sort()
    end, previous = data_start, ""
    for start, stop, key, _ in found:
        if start != end:
            what, amount = ("an overlap", end - start) if start < end else ("a hole", start - end)
            after = f"tensor {show(previous)}" if previous else "the header"
            raise FormatError(
                f"tensor {show(key)}: expected data_offsets to begin at {end - data_start}, right after {after}, "
                f"found {start - data_start}: {what} of {amount} bytes"
            )
        end, previous = stop, key
    if end > file_nbytes:
        raise FormatError(
            f"truncated: expected {end} bytes, found {file_nbytes}, {end - file_nbytes} bytes are missing"
        )
    if end < file_nbytes:
        raise FormatError(f"padded: expected {end} bytes, found {file_nbytes}, {file_nbytes - end} bytes are extra")
    starts, _, keys, kinds = map(list, zip(*found, strict=True)) if found else ([], [], [], [])
    return Header(keys, kinds, starts, metadata, data_start)


def _entry(key: str, fields: Any, data_start: int) -> tuple[int, int, str, Kind]:
    """(first byte, one past the last, key, kind); sorted, they are in the order of the data."""
    try:
        if type(fields) is not tuple:
            raise FormatError(f"expected an object with dtype, shape and data_offsets, found {show(fields)}")
        named = dict(fields)
        if len(fields) != 3 or named.keys() != _FIELDS:
            raise _wrong_fields(fields, named)
        shape, offsets = named["shape"], named["data_offsets"]
        _check_sizes("shape", shape)
        _check_sizes("data_offsets", offsets)
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            raise FormatError(f"expected data_offsets [begin, end] with begin <= end, found {show(offsets)}")
        start, stop = offsets
        if type(named["dtype"]) is not str:
            raise FormatError(f"expected dtype to be a string, found {show(named['dtype'])}")
        kind = sized(named["dtype"], tuple(shape))
        if stop - start != kind.nbytes:
            what = f"{kind.code} of shape {show(shape)}"
            raise FormatError(f"expected {kind.nbytes} bytes for {what}, found {stop - start} in data_offsets")
    except FormatError as error:
        raise FormatError(f"tensor {show(key)}: {error}") from None
    return data_start + start, data_start + stop, key, kind


def _wrong_fields(fields: tuple[tuple[str, Any], ...], named: dict[str, Any]) -> FormatError:
    if len(named) != len(fields):
        return FormatError(f"the field {show(repeated(fields))} is given twice")
    names = ", ".join(show(name) for name in list(named)[:5]) or "none"
    return FormatError(f"expected the fields dtype, shape and data_offsets and no others, found {names}")


def _check_sizes(name: str, sizes: Any) -> None:
    """Whole numbers only: to Python True == 1 == 1.0, so the type is checked and not the value."""
    if type(sizes) is not list:
        raise FormatError(f"expected {name} to be a list, found {show(sizes)}")
    for size in sizes:
        if type(size) is not int or not 0 <= size < LIMIT:
            raise FormatError(f"expected {name} of whole numbers from 0 to 2**63 - 1, found {show(size)}")


def _metadata(fields: Any) -> dict[str, str]:
    if type(fields) is not tuple:
        raise FormatError(f"{METADATA}: expected an object of strings, found {show(fields)}")
    metadata: dict[str, str] = dict(fields)
    if len(metadata) != len(fields):
        raise FormatError(f"{METADATA}: the field {show(repeated(fields))} is given twice")
    for name, text in metadata.items():
        if type(text) is not str:
            raise FormatError(f"{METADATA}: expected a string for {show(name)}, found {show(text)}")
    return metadata


def format_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[int]]:
    """Write the header of a file that holds `tensors` one after the other.

    >>> header, offsets = format_header([("a", "F32", (2, 3)), ("b", "U8", (5,))], {"format": "pt"})
    >>> len(header) % 8, [offset - len(header) for offset in offsets]
    (0, [0, 24])

    Args:
        tensors: (key, safetensors code, shape) in the order of the data. Wide dtypes first keeps every tensor aligned.
        metadata: the file's `__metadata__`; left out where empty.

    Returns:
        The 8 length bytes and the JSON, padded with spaces so that the data starts at a multiple of 8; and the
        absolute offset of every tensor, in the order given.

    Raises:
        FormatError: a key twice or not writable, an unknown code, metadata that is not text, more than 100 MB.
    """
    fields: dict[str, Any] = {}
    starts: list[int] = []
    if metadata:
        fields[METADATA] = _metadata(tuple(metadata.items()))
    end = 0
    for key, code, shape in tensors:
        if key in fields or key == METADATA:
            reason = "the name is reserved for metadata" if key == METADATA else "the key is given twice"
            raise FormatError(f"cannot write tensor {show(key)}: {reason}; rename or leave out one of them")
        try:
            _check_sizes("shape", list(shape))
            nbytes = sized(code, tuple(shape)).nbytes
        except FormatError as error:
            raise FormatError(f"cannot write tensor {show(key)}: {error}") from None
        fields[key] = {"dtype": code, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        starts.append(end)
        end += nbytes
    try:
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.start + 20]
        raise FormatError(f"cannot write the header: a name holds a lone surrogate near {show(around)}") from None
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_NBYTES:
        raise FormatError(
            f"cannot write a header of {len(text)} bytes: at most {MAX_HEADER_NBYTES} are allowed; use smaller shards"
        )
    data_start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, [data_start + start for start in starts]

"""The header of a safetensors file: a strict parser that keeps byte offsets. Its inverse is header_writing.

Source: the safetensors format (8 bytes little-endian length, JSON, data without holes). We refuse what safetensors 0.8
lets through and two readers could understand differently: repeated names and entries written as lists.
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import CutShortError, FormatError
from ...stores.base import File
from ...stores.strict_json import parse_json, refuse_foreign, repeated, show
from ..base import Kind
from .canonical import read_canonical
from .entries import LIMIT, METADATA, Header, sized

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
    except CutShortError as error:
        raise CutShortError(f"cannot read {file.path}: {error}; {_AGAIN}", error.found) from None
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
        raise CutShortError(f"expected at least the 8 bytes of the header length, found {file.size}")
    if nbytes > MAX_HEADER_NBYTES:
        raise FormatError(f"expected a header of at most {MAX_HEADER_NBYTES} bytes, found a length of {nbytes}")
    if not fits:
        raise CutShortError(f"truncated: expected a header of {nbytes} bytes, found {file.size - 8} after its length")
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
            metadata = checked_metadata(fields)
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
    if end < file_nbytes:
        raise FormatError(f"padded: expected {end} bytes, found {file_nbytes}, {file_nbytes - end} bytes are extra")
    starts, _, keys, kinds = map(list, zip(*found, strict=True)) if found else ([], [], [], [])
    header = Header(keys, kinds, starts, metadata, data_start)
    if end > file_nbytes:
        missing = f"expected {end} bytes, found {file_nbytes}, {end - file_nbytes} bytes are missing"
        raise CutShortError(f"truncated: {missing}", header)
    return header


def _entry(key: str, fields: Any, data_start: int) -> tuple[int, int, str, Kind]:
    """(first byte, one past the last, key, kind); sorted, they are in the order of the data."""
    try:
        if type(fields) is not tuple:
            raise FormatError(f"expected an object with dtype, shape and data_offsets, found {show(fields)}")
        named = dict(fields)
        if len(fields) != 3 or named.keys() != _FIELDS:
            raise _wrong_fields(fields, named)
        shape, offsets = named["shape"], named["data_offsets"]
        check_sizes("shape", shape)
        check_sizes("data_offsets", offsets)
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


def check_sizes(name: str, sizes: Any) -> None:
    """Whole numbers only: to Python True == 1 == 1.0, so the type is checked and not the value."""
    if type(sizes) is not list:
        raise FormatError(f"expected {name} to be a list, found {show(sizes)}")
    for size in sizes:
        if type(size) is not int or not 0 <= size < LIMIT:
            raise FormatError(f"expected {name} of whole numbers from 0 to 2**63 - 1, found {show(size)}")


def checked_metadata(fields: Any) -> dict[str, str]:
    if type(fields) is not tuple:
        raise FormatError(f"{METADATA}: expected an object of strings, found {show(fields)}")
    metadata: dict[str, str] = dict(fields)
    if len(metadata) != len(fields):
        raise FormatError(f"{METADATA}: the field {show(repeated(fields))} is given twice")
    for name, text in metadata.items():
        if type(text) is not str:
            raise FormatError(f"{METADATA}: expected a string for {show(name)}, found {show(text)}")
    return metadata

"""Writing the header of a safetensors file: its length first, then its text in pieces, never all of it at once."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...errors import FormatError
from ...stores.strict_json import show
from .entries import METADATA, sized
from .header import MAX_HEADER_NBYTES, check_sizes, checked_metadata

Tensors = Iterable[tuple[str, str, tuple[int, ...]]]  # (key, safetensors code, shape) in the order of the data
_PIECE_NBYTES = 64 << 10


def lay_out_header(tensors: Tensors, metadata: Mapping[str, str]) -> tuple[int, list[int]]:
    """How long the header of a file is that holds `tensors` one after the other, and where each of them begins.

    >>> nbytes, starts = lay_out_header([("a", "F32", (2, 3)), ("b", "U8", (5,))], {"format": "pt"})
    >>> nbytes % 8, [start - nbytes for start in starts]
    (0, [0, 24])

    Args:
        tensors: wide dtypes first keeps every tensor aligned.
        metadata: the file's `__metadata__`; left out where empty.

    Returns:
        Bytes of the header, its length field and padding included; the absolute offset of every tensor.

    Raises:
        FormatError: a key twice or not writable, an unknown code, metadata that is not text, more than 100 MB.
    """
    keys: set[str] = set()
    starts: list[int] = []

    def noted() -> Tensors:
        for key, code, shape in tensors:
            if key in keys or key == METADATA:
                reason = "the name is reserved for metadata" if key == METADATA else "the key is given twice"
                raise FormatError(f"cannot write tensor {show(key)}: {reason}; rename or leave out one of them")
            keys.add(key)
            yield key, code, shape

    length = 1
    for start, text in _fields(noted(), metadata):
        length += len(text) + 1
        if start is not None:
            starts.append(start)
    length = max(length, 2)  # "{}"
    nbytes = 8 + length + -length % 8
    if nbytes - 8 > MAX_HEADER_NBYTES:
        raise FormatError(
            f"cannot write a header of {nbytes - 8} bytes: at most {MAX_HEADER_NBYTES} are allowed; use smaller shards"
        )
    return nbytes, [nbytes + start for start in starts]


def header_pieces(tensors: Tensors, metadata: Mapping[str, str], nbytes: int) -> Iterator[bytes]:
    """The header of `lay_out_header`, which is `nbytes` long: the length field, the JSON, spaces up to its end."""
    held, left = bytearray(struct.pack("<Q", nbytes - 8)), nbytes
    before = b"{"
    for _, text in _fields(tensors, metadata):
        held += before + text
        before = b","
        if len(held) >= _PIECE_NBYTES:
            left -= len(held)
            yield bytes(held)
            held.clear()
    held += b"}" if before == b"," else b"{}"
    yield bytes(held).ljust(left)


def _fields(tensors: Tensors, metadata: Mapping[str, str]) -> Iterator[tuple[int | None, bytes]]:
    """The text of each field, and where its tensor begins behind the header; None for metadata."""
    if metadata:
        yield None, _text(METADATA, checked_metadata(tuple(metadata.items())))
    end = 0
    for key, code, shape in tensors:
        try:
            check_sizes("shape", list(shape))
            nbytes = sized(code, tuple(shape)).nbytes
        except FormatError as error:
            raise FormatError(f"cannot write tensor {show(key)}: {error}") from None
        yield end, _text(key, {"dtype": code, "shape": list(shape), "data_offsets": [end, end + nbytes]})
        end += nbytes


def _text(key: str, value: Any) -> bytes:
    try:
        return (_json(key) + ":" + _json(value)).encode("utf-8")
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.start + 20]
        raise FormatError(f"cannot write the header: a name holds a lone surrogate near {show(around)}") from None


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

"""What a header says of its tensors, column by column: a checkpoint has many tensors and few shapes."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ...dtypes import DTYPES
from ...errors import FormatError
from ...stores.strict_json import show
from ..base import Kind

LIMIT = 2**63  # sizes and offsets stay below: what a file offset can express
METADATA = "__metadata__"


class Entry(NamedTuple):
    """One tensor of a file."""

    code: str  # the safetensors dtype code, a key of DTYPES
    shape: tuple[int, ...]
    start: int  # absolute byte range [start, stop) in the file
    stop: int


class Header(NamedTuple):
    """What a safetensors file says about itself. The columns are in the order of the data."""

    keys: list[str]
    kinds: list[Kind]  # their dims count values, also of types narrower than a byte
    starts: list[int]  # absolute offset of each tensor's first byte
    metadata: dict[str, str]
    data_start: int  # absolute offset of the first byte after the header

    @property
    def entries(self) -> dict[str, Entry]:
        """Each tensor by its key, made anew."""
        rows = zip(self.keys, self.kinds, self.starts, strict=True)
        return {key: Entry(code, shape, start, start + nbytes) for key, (code, shape, nbytes), start in rows}


@lru_cache(maxsize=4096)
def sized(code: str, shape: tuple[int, ...]) -> Kind:
    """The kind of a tensor. A checkpoint has few: the cache makes its tensors share them, and all their tuples.

    Raises:
        FormatError: no such dtype, 2**63 bytes or more, or a number of bits that is no number of bytes.
    """
    if code not in DTYPES:
        raise FormatError(f"expected a dtype among {', '.join(DTYPES)}, found {show(code)}")
    bits, empty = DTYPES[code].bits, False
    for size in shape:
        empty |= size == 0
        bits *= size or 1  # numpy and torch refuse such shapes also where a zero makes them empty
        if bits >= 8 * LIMIT:
            raise FormatError(f"expected fewer than 2**63 bytes, found shape {show(list(shape))}, which overflows")
    if empty:
        return Kind(DTYPES[code].code, shape, 0)
    if bits % 8:
        raise FormatError(f"expected whole bytes, found {bits} bits for {code} of shape {show(list(shape))}")
    return Kind(DTYPES[code].code, shape, bits // 8)

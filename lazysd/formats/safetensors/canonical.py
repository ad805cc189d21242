"""Headers written the way nearly every writer writes them, read at the speed of C.

The text is cut at its entries by one pattern. Between them may stand a comma, before them `__metadata__`, after them
spaces: then the pieces are the header, read the only way there is. On any doubt the answer is None, and the strict
parser looks again; what it would refuse, or order otherwise, is never answered here.
"""

from __future__ import annotations

import re
from itertools import accumulate
from operator import itemgetter

from ...errors import FormatError
from ...stores.strict_json import parse_json
from ..base import Kind
from .entries import METADATA, Header, sized

# The dtype and the shape are one piece, because few of them differ. Numbers of 18 digits stay below 2**63.
_NUMBER = rb"(0|[1-9][0-9]{0,17})"
_ENTRY = re.compile(
    rb'"([^"\\\x00-\x1f]*+)":\{"dtype":"([A-Z0-9_]++","shape":\[[0-9,]*+)\],"data_offsets":\['
    + _NUMBER + rb"," + _NUMBER + rb"\]\}"
)  # fmt: skip
_GROUPS = _ENTRY.groups + 1  # in what split() returns: the text before an entry, then its groups
_SHAPE = re.compile(rb"(?:(?:0|[1-9][0-9]{0,17})(?:,(?:0|[1-9][0-9]{0,17}))*)?")
_BEGIN = f'{{"{METADATA}":'.encode()
_nbytes_of = itemgetter(2)  # of a Kind


def read_canonical(raw: bytes, data_start: int, file_nbytes: int) -> Header | None:
    """The header, or None where the strict parser has to look: it may be refused, or only be written otherwise.

    Args:
        raw: the JSON.
        data_start: absolute offset of the first byte after it.
        file_nbytes: size of the whole file.
    """
    parts = _ENTRY.split(raw)
    between = set(parts[_GROUPS:-1:_GROUPS])
    if len(parts) == 1 or not between <= {b","} or parts[-1].rstrip(b" ") != b"}":
        return None
    begins, ends = parts[3::_GROUPS], parts[4::_GROUPS]
    if begins[0] != b"0" or begins[1:] != ends[:-1]:
        return None
    try:
        metadata = _metadata(parts[0])
        keys = b"\n".join(parts[1::_GROUPS]).decode().split("\n")  # no key has a line break in it
        texts = parts[2::_GROUPS]
        kind_of = {text: _kind(text) for text in set(texts)}
    except (FormatError, UnicodeDecodeError):
        return None
    names = set(keys)
    if len(names) != len(keys) or METADATA in names:
        return None
    kinds = list(map(kind_of.__getitem__, texts))
    sizes = list(map(_nbytes_of, kinds))
    if list(accumulate(sizes)) != list(map(int, ends)):
        return None
    starts = list(accumulate(sizes, initial=data_start))
    if starts.pop() != file_nbytes:
        return None
    if any(not kind.nbytes for kind in kind_of.values()):  # empty tensors begin where others do: keys decide then
        return None
    return Header(keys, kinds, starts, metadata, data_start)


def _metadata(head: bytes) -> dict[str, str]:
    """`__metadata__`, from all that stands before the first entry. Raises FormatError where that is not plain."""
    if head == b"{":
        return {}
    if not head.startswith(_BEGIN) or not head.endswith(b","):
        raise FormatError("something else stands before the first tensor")
    pairs = parse_json(head[len(_BEGIN) : -1], tuple)
    if type(pairs) is not tuple or any(type(text) is not str for _, text in pairs):
        raise FormatError("no object of strings")
    metadata: dict[str, str] = dict(pairs)
    if len(metadata) != len(pairs):
        raise FormatError("a field is given twice")
    return metadata


def _kind(text: bytes) -> Kind:
    """The kind of `BF16","shape":[2,3`. Raises FormatError for what is none."""
    code, _, shape = text.partition(b'","shape":[')
    if not _SHAPE.fullmatch(shape):
        raise FormatError("no shape")
    return sized(code.decode(), tuple(map(int, shape.split(b","))) if shape else ())

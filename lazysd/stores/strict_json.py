"""Files nobody vouches for: refuse foreign kinds, parse JSON that can be read one way only."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, UnsupportedCheckpointError

if TYPE_CHECKING:
    from .base import File

MAX_JSON_NBYTES = 512 * 1000**2  # an index of a trillion parameters takes about 10 MB
MAX_LISTED = 5
MAX_JSON_DEPTH = 64  # deeper values would exhaust the stack of whoever walks them later

_PICKLE_STEP = "convert it to safetensors with a tool you trust (torch.load(weights_only=True), then save_file)"
_LFS = (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself", "run `git lfs pull`")
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, most likely a torch pickle", _PICKLE_STEP),
    *((bytes((0x80, version)), "a Python pickle", _PICKLE_STEP) for version in range(2, 6)),
    (b"GGUF", "a GGUF file", "open the safetensors checkpoint it was made from"),
    _LFS,
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "convert it to safetensors with the framework that wrote it"),
    (b"\x93NUMPY", "a numpy array", "convert it with safetensors.numpy.save_file"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first (gunzip, tar -xzf)"),
)
_MAYBE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def printable(text: str) -> str:
    """`text` with everything a terminal could act on written as an escape: how every name of others is shown."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def show(value: object) -> str:
    """A value found in a file, short and on one line, whatever it holds and however deep it goes."""
    if isinstance(value, list):
        inner = ", ".join("[…]" if isinstance(item, list) else show(item) for item in value[:8])
        return f"[{inner}, …] ({len(value)} items)" if len(value) > 8 else f"[{inner}]"
    if isinstance(value, (dict, tuple)):
        return f"an object with {len(value)} fields"
    if not isinstance(value, (str, int, float, bytes, type(None))):  # from no file
        return f"a {type(value).__name__}"
    if isinstance(value, int) and not -(10**100) < value < 10**100:  # Python writes no more than 4,300 digits
        return f"a number of {value.bit_length()} bits"
    text = repr(value[:100]) if isinstance(value, str) else repr(value)
    return text[:100] + "…" if len(text) > 100 or (isinstance(value, str) and len(value) > 100) else text


def listing(names: list[str]) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(show(name) for name in names[:MAX_LISTED]) + more


def refuse_foreign(head: bytes, path: str | os.PathLike[str]) -> None:
    """Raise UnsupportedCheckpointError where the first bytes are those of another kind of file."""
    for magic, kind, step in _FOREIGN:
        if head.startswith(magic):
            raise UnsupportedCheckpointError(f"cannot open {path}: expected safetensors, found {kind}; {step}")


def parse_json(
    raw: bytes,
    objects: Callable[[list[tuple[str, Any]]], Any] | None,
    constants: bool = False,
    integer: Callable[[str], int] | None = None,
) -> Any:
    """Parse UTF-8 JSON; `objects` makes each object out of its pairs, None a dict. FormatError has the bare reason.

    Refused on top of what the json module refuses: NaN and infinities (unless `constants`), numbers with thousands of
    digits, nesting that exhausts the stack, and escaped lone surrogates (strings that cannot be written back).
    """
    try:
        text = raw.decode("utf-8")
        constant = float if constants else _no_constant
        value = json.loads(
            text, object_pairs_hook=objects, parse_constant=constant, parse_float=_finite, parse_int=integer
        )
        if _MAYBE_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"expected UTF-8, found byte 0x{raw[error.start]:02x} at offset {error.start}") from None
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 60) : error.start + 20]
        raise FormatError(f"expected Unicode text, found a lone surrogate near {show(around)}") from None
    except RecursionError:
        raise FormatError("expected flat JSON, found it nested too deep to parse") from None
    except json.JSONDecodeError as error:
        raise FormatError(f"expected JSON, found an error at offset {error.pos}: {error.msg}") from None
    except FormatError:
        raise
    except ValueError:  # the limit on the digits of an int
        raise FormatError("expected ordinary numbers, found one with thousands of digits") from None
    return value


def read_json(file: File, what: str, constants: bool = False) -> dict[str, Any]:
    """Read a JSON object from a file (config.json, an index) that every reader understands alike.

    Args:
        file: of at most 512 MB.
        what: what the file is, for messages: "config.json", "shard index".
        constants: let NaN and Infinity pass, which Python writes and reads though JSON has no such numbers.

    Raises:
        FormatError: not UTF-8 JSON, not an object, a field given twice, NaN or infinity, nested deeper than 64.
        UnsupportedCheckpointError: a Git LFS pointer.
        MissingShardError, ReadError: absent, or not readable.
    """
    if file.size > MAX_JSON_NBYTES:
        raise FormatError(
            f"cannot read the {what} {file.path}: expected at most {MAX_JSON_NBYTES} bytes, found {file.size}"
        )
    raw = file.text(0, file.size)
    if raw.startswith(_LFS[0]):
        raise UnsupportedCheckpointError(f"cannot read the {what} {file.path}: it is {_LFS[1]}; {_LFS[2]}")
    try:
        value = parse_json(raw, None, constants)
        if not isinstance(value, dict):
            raise FormatError(f"expected a JSON object, found {show(value)}")
        if 2 * _num_strings(value) != raw.count(b'"') or b"\\" in raw:
            value = parse_json(raw, _unique, constants)  # a field may be given twice: fewer strings than are written
        found: dict[str, Any] = value
    except FormatError as error:
        raise FormatError(f"cannot read the {what} {file.path}: {error}; correct the file or fetch it again") from None
    return found


def repeated(pairs: list[tuple[str, Any]] | tuple[tuple[str, Any], ...]) -> str:
    """The name that occurs most often among `pairs`."""
    return Counter(name for name, _ in pairs).most_common(1)[0][0]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise FormatError(f"the field {show(repeated(pairs))} is given twice")
    return fields


def _num_strings(value: dict[str, Any]) -> int:
    """How many strings it holds, names of fields included. Raises FormatError where it is nested deeper than 64."""
    level: list[Any] = [value]
    count = 0
    for _ in range(MAX_JSON_DEPTH):
        count += sum(len(node) for node in level if isinstance(node, dict))
        parts = [node.values() if isinstance(node, dict) else node for node in level]
        kinds = [Counter(map(type, part)) for part in parts]
        count += sum(found[str] for found in kinds)
        deep = (part for part, found in zip(parts, kinds, strict=True) if found[dict] or found[list])
        level = [child for part in deep for child in part if isinstance(child, (dict, list))]
        if not level:
            return count
    raise FormatError(f"expected at most {MAX_JSON_DEPTH} levels of nesting, found more")


def _no_constant(name: str) -> None:
    raise FormatError(f"expected finite numbers, found {name}, which JSON does not have")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise FormatError(f"expected finite numbers, found {show(text)}, which overflows a float")
    return number

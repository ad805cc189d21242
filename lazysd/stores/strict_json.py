"""Files nobody vouches for: open without blocking, refuse foreign kinds, parse JSON that can be read one way only."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..errors import FormatError, LazysdError, MissingShardError, ReadError, UnsupportedCheckpointError

MAX_JSON_NBYTES = 512 * 1000**2  # an index of a trillion parameters takes about 10 MB
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
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_MAYBE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def show(value: object) -> str:
    """A value found in a file, short and on one line, whatever it holds and however deep it goes."""
    if isinstance(value, list):
        inner = ", ".join("[…]" if isinstance(item, list) else show(item) for item in value[:8])
        return f"[{inner}, …] ({len(value)} items)" if len(value) > 8 else f"[{inner}]"
    if isinstance(value, (dict, tuple)):
        return f"an object with {len(value)} fields"
    text = repr(value[:100]) if isinstance(value, str) else repr(value)
    return text[:100] + "…" if len(text) > 100 or (isinstance(value, str) and len(value) > 100) else text


def listing(names: list[str]) -> str:
    """The first five names and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(show(name) for name in names[:5]) + more


def check_regular(path: str | os.PathLike[str], mode: int) -> None:
    """Raise FormatError unless `mode` (st_mode) is that of a regular file."""
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "not a regular file")
        raise FormatError(f"cannot read {path}: expected a regular file, found {kind}; pass the file or folder itself")


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading and return its descriptor; never blocks on a pipe or a device."""
    try:
        check_regular(path, os.stat(path).st_mode)  # before the open: opening a device may have effects
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except LazysdError:
        raise
    except FileNotFoundError:
        raise MissingShardError(f"cannot read {path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise ReadError(f"cannot open {path}: {error}; check the path and its permissions") from error
    try:
        check_regular(path, os.fstat(fd).st_mode)  # it may have been swapped since the stat
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_at(fd: int, nbytes: int, offset: int, path: str | os.PathLike[str]) -> bytes:
    """Read exactly `nbytes` bytes. The caller has checked `nbytes` against the size of the file."""
    pieces: list[bytes] = []
    missing = nbytes
    while missing:
        try:
            piece = os.pread(fd, missing, offset + nbytes - missing)
        except OSError as error:
            raise ReadError(f"cannot read {nbytes} bytes at {offset} of {path}: {error}") from error
        if not piece:
            raise ReadError(
                f"cannot read {path}: it ended {missing} bytes early; it was cut while being read, try again"
            )
        pieces.append(piece)
        missing -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def refuse_foreign(head: bytes, path: str | os.PathLike[str]) -> None:
    """Raise UnsupportedCheckpointError where the first bytes are those of another kind of file."""
    for magic, kind, step in _FOREIGN:
        if head.startswith(magic):
            raise UnsupportedCheckpointError(f"cannot open {path}: expected safetensors, found {kind}; {step}")


def parse_json(raw: bytes, objects: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    """Parse UTF-8 JSON; `objects` makes each object out of its pairs. Raises FormatError with the bare reason.

    Refused on top of what the json module refuses: NaN and infinities, numbers with thousands of digits, nesting that
    exhausts the stack, and escaped lone surrogates (strings that cannot be written back).
    """
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=objects, parse_constant=_no_constant, parse_float=_finite)
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


def read_json(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read a JSON object from a file (config.json, an index) that every reader understands alike.

    Args:
        path: a regular file of at most 512 MB.
        what: what the file is, for messages: "config", "shard index".

    Raises:
        FormatError: not UTF-8 JSON, not an object, a field given twice, NaN or infinity, nested deeper than 64.
        UnsupportedCheckpointError: a Git LFS pointer.
        MissingShardError, ReadError: absent, or not readable.
    """
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size > MAX_JSON_NBYTES:
            raise FormatError(f"cannot read the {what} {path}: expected at most {MAX_JSON_NBYTES} bytes, found {size}")
        raw = read_at(fd, size, 0, path)
    finally:
        os.close(fd)
    if raw.startswith(_LFS[0]):
        raise UnsupportedCheckpointError(f"cannot read the {what} {path}: it is {_LFS[1]}; {_LFS[2]}")
    try:
        value = parse_json(raw, _unique)
        if not isinstance(value, dict):
            raise FormatError(f"expected a JSON object, found {show(value)}")
        _check_depth(value)
    except FormatError as error:
        raise FormatError(f"cannot read the {what} {path}: {error}; correct the file or fetch it again") from None
    return value


def repeated(pairs: list[tuple[str, Any]] | tuple[tuple[str, Any], ...]) -> str:
    """The name that occurs most often among `pairs`."""
    return Counter(name for name, _ in pairs).most_common(1)[0][0]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise FormatError(f"the field {show(repeated(pairs))} is given twice")
    return fields


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        parts = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for part in parts for child in part if isinstance(child, (dict, list))]
        if not level:
            return
    raise FormatError(f"expected at most {MAX_JSON_DEPTH} levels of nesting, found more")


def _no_constant(name: str) -> None:
    raise FormatError(f"expected finite numbers, found {name}, which JSON does not have")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise FormatError(f"expected finite numbers, found {show(text)}, which overflows a float")
    return number

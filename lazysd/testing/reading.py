"""Which bytes were read: every read of tensor data noted, and nothing but what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from unittest.mock import patch

from ..arguments import checked
from ..stores.base import File, Parts
from ..tensor.lazy import LazyTensor
from .comparing import MAX_LISTED

T = TypeVar("T")
Reads = list[tuple[str, int, int]]


@contextmanager
def recorded_reads() -> Iterator[Reads]:
    """Collect every read of tensor data by lazysd inside the block, by any thread: (file, offset, nbytes).

    Views of mapped files count when they are handed out, whether or not they are touched.
    """
    noted: Reads = []
    read, view = File.read, File.view

    def noting(self: File, parts: Parts) -> None:
        noted.extend((self.path, offset, len(buffer)) for buffer, offset in parts)
        read(self, parts)

    def viewing(self: File, offset: int, nbytes: int) -> memoryview | None:
        found = view(self, offset, nbytes)
        if found is not None:
            noted.append((self.path, offset, nbytes))
        return found

    with patch.object(File, "read", noting), patch.object(File, "view", viewing):
        yield noted


def merged(reads: Iterable[tuple[str, int, int]]) -> Reads:
    """Byte ranges sorted, overlapping and touching ones joined, empty ones left out: as `LazyTensor.reads()`."""
    joined: Reads = []
    for path, start, nbytes in sorted(reads):
        if joined and joined[-1][0] == path and start <= joined[-1][1] + joined[-1][2]:
            stop = max(start + nbytes, joined[-1][1] + joined[-1][2])
            joined[-1] = (path, joined[-1][1], stop - joined[-1][1])
        elif nbytes:
            joined.append((path, start, nbytes))
    return joined


@checked
def assert_reads_only(action: Callable[[], T], allowed: Iterable[LazyTensor] = (), exactly: bool = False) -> T:
    """Run `action` and assert that it reads no tensor data but that of `allowed`. Returns what it returns.

    With nothing allowed: that it reads none. What counts is what lazysd reads from files, on every thread.

    >>> import lazysd
    >>> from lazysd.testing import assert_reads_only
    >>> ckpt = assert_reads_only(lambda: lazysd.open("tests/golden/qwen3_moe_tiny"))
    >>> key = "model.layers.0.mlp.experts."
    >>> down = ckpt.convert("nemo")[key + "down_projs"]
    >>> tensor = assert_reads_only(down[2].materialize, [ckpt[key + "2.down_proj.weight"]], exactly=True)

    Args:
        action: called once, without arguments.
        allowed: lazy tensors whose bytes may be read.
        exactly: every one of their bytes has to be read as well.

    Raises:
        AssertionError: the first ranges that were read without being allowed, or allowed without being read.
    """
    limits = merged(part for node in allowed for part in node.reads())
    with recorded_reads() as noted:
        result = action()
    found = merged(noted)
    _assert_within(found, limits, "read, but not part of what is allowed")
    if exactly:
        _assert_within(limits, found, "allowed, but not read")
    return result


def _assert_within(ranges: Reads, limits: Reads, complaint: str) -> None:
    """Every range has to lie inside one limit; both are merged."""
    outside = [
        (path, start, nbytes)
        for path, start, nbytes in ranges
        if not any(path == p and s <= start and start + nbytes <= s + n for p, s, n in limits)
    ]
    if outside:
        shown = "\n".join(f"  {path} at {start}, {nbytes} bytes" for path, start, nbytes in outside[:MAX_LISTED])
        raise AssertionError(f"{len(outside)} ranges were {complaint}:\n{shown}")

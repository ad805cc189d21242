"""Assertions about bytes: two state dicts hold the same ones, a conversion gives them back, nothing else was read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch

from .. import dtypes
from ..stores.local import SourceFile
from ..tensor.lazy import LazyTensor

T = TypeVar("T")
Convert = Callable[[dict[str, Any]], Mapping[str, Any]]
Reads = list[tuple[str, int, int]]
MAX_LISTED = 5


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as integers of the same width, so that NaN payloads and signs of zeros count."""
    return tensor.detach().contiguous().view(dtypes.bits_dtype(dtypes.from_torch(tensor.dtype)))


def assert_same_bytes(found: Any, expected: Any) -> None:
    """Assert that two tensors, or two state dicts, have the same keys, shapes, dtypes and bits.

    Either side may hold lazy tensors; they are read one at a time. Bits are compared as integers: a NaN equals itself
    only with the same payload, and -0.0 differs from 0.0.

    >>> import torch
    >>> from lazysd.testing import assert_same_bytes
    >>> assert_same_bytes({"w": torch.tensor([0.0, torch.nan])}, {"w": torch.tensor([0.0, torch.nan])})
    >>> assert_same_bytes(torch.tensor([0.0]), torch.tensor([-0.0]))
    Traceback (most recent call last):
    AssertionError: 1 of 1 elements differ, the first at (0,): found bits 0x0, expected 0x80000000

    Raises:
        AssertionError: which key, and what differs.
    """
    if not isinstance(expected, Mapping):
        if problem := _difference(found, expected):
            raise AssertionError(problem)
        return
    problems = []
    for what, keys in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if keys:
            shown = ", ".join(sorted(map(str, keys))[:MAX_LISTED])
            problems.append(f"{len(keys)} {what}: {shown}{', …' if len(keys) > MAX_LISTED else ''}")
    for key in expected:
        if key in found and (problem := _difference(found[key], expected[key])):
            problems.append(f"{key}: {problem}")
    if problems:
        more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        raise AssertionError("\n".join([*problems[:MAX_LISTED], *more]))


def _difference(found: Any, expected: Any) -> str | None:
    """What differs between two tensors, None where nothing does."""
    if tuple(found.shape) != tuple(expected.shape) or found.dtype != expected.dtype:
        return f"found {found.dtype} {list(found.shape)}, expected {expected.dtype} {list(expected.shape)}"
    here, there = (bits_of(_tensor(value)).cpu() for value in (found, expected))
    if torch.equal(here, there):
        return None
    places = (here != there).nonzero()
    first = tuple(places[0].tolist())
    mask = (1 << 8 * here.element_size()) - 1
    a, b = (int(side[first]) & mask for side in (here, there))
    return f"{len(places)} of {here.numel()} elements differ, the first at {first}: found bits {a:#x}, expected {b:#x}"


def _tensor(value: Any) -> torch.Tensor:
    return value.materialize() if isinstance(value, LazyTensor) else value


def assert_round_trip(forward: Convert, backward: Convert, state_dict: Mapping[str, Any]) -> None:
    """Assert that `backward(forward(state_dict))` gives back every key and every byte, and edits nothing on the way.

    Both are plain functions from a dict of tensors to another; they need not be lazysd's. Each gets a dict of its own,
    so that popping keys from it is allowed; writing into the tensors is not.

    >>> import torch
    >>> from lazysd.testing import assert_round_trip
    >>> def transpose(tensors):
    ...     return {key: tensor.T for key, tensor in tensors.items()}
    >>> assert_round_trip(transpose, transpose, {"w": torch.arange(6.0).reshape(2, 3)})

    Raises:
        AssertionError: a key or byte that did not come back, or a tensor that was edited in place.
    """
    before = {key: _tensor(value).clone() for key, value in state_dict.items()}
    back = backward(dict(forward(dict(state_dict))))
    try:
        assert_same_bytes(dict(state_dict), before)
    except AssertionError as error:
        raise AssertionError(f"converting edited its input:\n{error}") from None
    try:
        assert_same_bytes(back, before)
    except AssertionError as error:
        raise AssertionError(f"there and back is not the same:\n{error}") from None


@contextmanager
def recorded_reads() -> Iterator[Reads]:
    """Collect every read of tensor data by lazysd inside the block, by any thread: (file, offset, nbytes).

    Views of mapped files count when they are handed out, whether or not they are touched.
    """
    noted: Reads = []
    pread, view = SourceFile.pread, SourceFile.view

    def noting(self: SourceFile, buffer: memoryview, offset: int) -> None:
        noted.append((self.path, offset, len(buffer)))
        pread(self, buffer, offset)

    def viewing(self: SourceFile, offset: int, nbytes: int) -> memoryview | None:
        found = view(self, offset, nbytes)
        if found is not None:
            noted.append((self.path, offset, nbytes))
        return found

    with patch.object(SourceFile, "pread", noting), patch.object(SourceFile, "view", viewing):
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

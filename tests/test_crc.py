"""CRC-32 of parts, put together, against zlib over the whole."""

from __future__ import annotations

import sys
import zlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazysd.stores import crc
from lazysd.stores.crc import combine, crc32


def test_pinned() -> None:
    assert combine(zlib.crc32(b"lazy "), zlib.crc32(b"state dict"), 10) == zlib.crc32(b"lazy state dict")
    assert combine(zlib.crc32(b"lazy"), zlib.crc32(b""), 0) == zlib.crc32(b"lazy")


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_parts(first: bytes, second: bytes) -> None:
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@given(st.binary(max_size=9000), st.integers(0, 2**32 - 1))
def test_whoever_computes_it(data: bytes, value: int) -> None:
    assert crc32(data, value) == zlib.crc32(data, value)
    assert crc32(memoryview(data)) == zlib.crc32(data)


@pytest.mark.parametrize("kind", ["missing", "right", "wrong"])
def test_isal_is_used_where_it_is_and_says_the_same(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    asked = []

    def found(data: bytes, value: int = 0) -> int:
        asked.append(len(data))
        return zlib.crc32(data, value) ^ (kind == "wrong")

    library = None if kind == "missing" else SimpleNamespace(isal_zlib=SimpleNamespace(crc32=found))
    monkeypatch.setitem(sys.modules, "isal", library)
    crc._quickest.cache_clear()
    try:
        assert crc32(b"lazysd", 5) == zlib.crc32(b"lazysd", 5)
        assert (asked[-1:] == [6]) == (kind == "right")
    finally:
        crc._quickest.cache_clear()

"""CRC-32 of parts, put together, against zlib over the whole."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from lazysd.stores.crc import combine


def test_pinned() -> None:
    assert combine(zlib.crc32(b"lazy "), zlib.crc32(b"state dict"), 10) == zlib.crc32(b"lazy state dict")
    assert combine(zlib.crc32(b"lazy"), zlib.crc32(b""), 0) == zlib.crc32(b"lazy")


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_parts(first: bytes, second: bytes) -> None:
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)

"""CRC-32 of parts, put together, against zlib over the whole."""

from __future__ import annotations

import random
import sys
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazysd.compiled import built
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
    monkeypatch.setattr(crc, "VERSION", -1)  # no compiled one
    crc._quickest.cache_clear()
    try:
        assert crc32(b"lazysd", 5) == zlib.crc32(b"lazysd", 5)
        assert (asked[-1:] == [6]) == (kind == "right")
    finally:
        crc._quickest.cache_clear()


compiled: Any = built(crc.MODULE, crc.VERSION)
has_compiled = pytest.mark.skipif(compiled is None, reason="no compiler was there, or LAZYSD_KERNEL=off")


@has_compiled
def test_the_compiled_one_says_what_zlib_says_by_every_method() -> None:
    """Every length up to some folds of every kind and beyond, from any address, going on from any value."""
    random_ = random.Random(0)
    data = memoryview(random_.randbytes(70_000))
    for nbytes in [*range(700), *(random_.randrange(len(data) - 16) for _ in range(300))]:
        at, value = random_.randrange(16), random_.getrandbits(32)
        part = data[at : at + nbytes]
        for method in range(compiled.NUM_METHODS):
            assert compiled.crc32(part, value, method) == zlib.crc32(part, value), (nbytes, at, method)


@has_compiled
@pytest.mark.parametrize(
    "given", [(), ("text",), (3,), (memoryview(b"abcd")[::2],), (b"", 0, -1), (b"", 0, 9), (b"", "x")]
)
def test_the_compiled_one_refuses_nonsense(given: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError, BufferError)):
        compiled.crc32(*given)


@has_compiled
@pytest.mark.skipif(compiled is None or compiled.NUM_METHODS == 1, reason="a processor that cannot fold")
def test_the_compiled_one_is_used_where_it_folds() -> None:
    crc._quickest.cache_clear()
    assert crc._quickest() is compiled.crc32

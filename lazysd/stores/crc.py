"""CRC-32 of parts put together: what several workers computed of one tensor becomes the tensor's checksum.

Source: the algebra behind zlib's crc32_combine: appending n bytes multiplies the CRC by x^(8n) modulo the polynomial.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

_POLYNOMIAL = 0xEDB88320  # CRC-32 (IEEE 802.3), bits reflected: the most significant bit is x^0


def crc32(data: Any, value: int = 0) -> int:
    """CRC-32 of bytes, going on from that of what came before; by isal where that is installed, for it is quicker."""
    return _quickest()(data, value)


@cache
def _quickest() -> Callable[[Any, int], int]:
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.crc32
    found: Callable[[Any, int], int] = isal_zlib.crc32
    sample = bytes(range(256)) * 33  # not worth a doubt: what it says becomes part of files
    return found if found(sample, 7) == zlib.crc32(sample, 7) else zlib.crc32


def _multiply(a: int, b: int) -> int:
    """Product of two polynomials over GF(2), modulo the CRC polynomial."""
    product, bit = 0, 1 << 31
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(maxsize=1024)
def _shift(nbytes: int) -> int:
    """x^(8 * nbytes) modulo the polynomial."""
    power, square, count = 1 << 31, 1 << 23, nbytes  # x^0 and x^8
    while count:
        if count & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        count >>= 1
    return power


def combine(first: int, second: int, second_nbytes: int) -> int:
    """CRC-32 of two byte strings one after the other, from the CRC-32 of each and the length of the second."""
    return _multiply(_shift(second_nbytes), first) ^ second

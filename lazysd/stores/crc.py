"""CRC-32 of parts put together: what several workers computed of one tensor becomes the tensor's checksum.

Source: the algebra behind zlib's crc32_combine: appending n bytes multiplies the CRC by x^(8n) modulo the polynomial.
"""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0xEDB88320  # CRC-32 (IEEE 802.3), bits reflected: the most significant bit is x^0


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

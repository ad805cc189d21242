"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import re

from .arguments import shown

MAX_NBYTES = 1 << 63  # no file, and no machine, holds more
_LONGEST = 100  # characters of a size; float() of any longer number is infinite or a waste

_UNITS = {"": 1, "B": 1} | {
    letter + suffix: base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("", 1000), ("B", 1000), ("IB", 1024))
}


def parse_size(value: int | str) -> int:
    """Bytes: 1000, "1000", "5GB" (powers of 1000), "5GiB" (powers of 1024), "1.5 GB". Raises ValueError.

    >>> parse_size("5GB"), parse_size("1KiB")
    (5000000000, 1024)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        nbytes: int | float = value
    else:
        text = str(value) if isinstance(value, (str, float)) else ""
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text[:_LONGEST])
        if not found or found[2].upper() not in _UNITS:
            raise ValueError(f"cannot read {shown(value) or type(value).__name__} as a size; write 1000, 5GB or 5GiB")
        nbytes = float(found[1]) * _UNITS[found[2].upper()]
    if not 1 <= nbytes < MAX_NBYTES:
        raise ValueError(f"a size must be at least one byte and less than 8 EiB, got {shown(value)}")
    return int(nbytes)


def format_nbytes(nbytes: float) -> str:
    """A size for people, in powers of 1000: 805306368 -> '805.3 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"

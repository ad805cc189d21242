"""The numbers that bits stand for, by numpy alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..dtypes import NUMPY, is_packed, itemsize

Array = np.ndarray[Any, Any]

COUNTED = (
    "BOOL",
    "U8",
    "I8",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "I16",
    "U16",
    "F16",
    "BF16",
)
SUMMED = ("I32", "U32", "F32", "I64", "U64", "F64")
NUMBERS = frozenset((*COUNTED, *SUMMED))  # types whose elements are real numbers of whole bytes


@cache
def values(code: str) -> Array:
    """The number that each pattern of bits of a type of one or two bytes stands for, float64."""
    if code in _EXPONENT_BITS:
        return _small_floats(*_EXPONENT_BITS[code], is_ieee=code == "F8_E5M2", is_unsigned_zero=code.endswith("UZ"))
    if code == "F8_E8M0":
        made = np.ldexp(1.0, np.arange(256) - 127)
        made[255] = np.nan
        return made
    if code == "BOOL":
        return np.arange(256.0)
    return _plain(code, np.arange(256 if code in ("U8", "I8") else 65536))


def as_float64(code: str, held: Array) -> Array:
    """The elements that flat bytes hold, as float64."""
    if itemsize(code) == 1:
        made: Array = values(code)[held]
        return made
    return _plain(code, held.view(np.uint16 if code == "BF16" else _NUMPY[code]))


def element(code: str, held: Array, place: int) -> Any:
    """One of the elements that flat bytes hold, as Python has it; of packed types, the byte that holds several."""
    if is_packed(code):
        return int(held[place])
    if code in NUMPY:
        return held.view(_NUMPY[code])[place].item()
    size = itemsize(code)
    return float(as_float64(code, held[place * size : (place + 1) * size])[0])


def _plain(code: str, bits: Array) -> Array:
    """Of types that numpy has, or nearly so."""
    if code == "BF16":
        bits = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif bits.dtype != (dtype := np.dtype(_NUMPY[code])):
        bits = bits.astype(f"u{dtype.itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):  # a NaN that signals
        made: Array = bits.astype(np.float64)
    return made


_NUMPY = {code: f"{code[0].lower()}{itemsize(code)}" for code in NUMPY} | {"BOOL": "?"}

# Of 8-bit floats: bits of the exponent, and its bias.
# Source: OCP 8-bit Floating Point 1.0 (E4M3, E5M2); torch/headeronly/util/Float8_e4m3fnuz.h and Float8_e5m2fnuz.h.
_EXPONENT_BITS = {"F8_E4M3": (4, 7), "F8_E5M2": (5, 15), "F8_E4M3FNUZ": (4, 8), "F8_E5M2FNUZ": (5, 16)}


def _small_floats(exponent_bits: int, bias: int, is_ieee: bool, is_unsigned_zero: bool) -> Array:
    bits = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    exponent, mantissa = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1), bits & ((1 << mantissa_bits) - 1)
    scaled = np.where(exponent > 0, mantissa + (1 << mantissa_bits), mantissa)
    made: Array = np.ldexp(scaled.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    if is_ieee:
        top = exponent == (1 << exponent_bits) - 1
        made[top] = np.where(mantissa[top] > 0, np.nan, np.inf)
    elif not is_unsigned_zero:
        made[(bits & 127) == 127] = np.nan
    made[128:] *= -1
    if is_unsigned_zero:
        made[128] = np.nan
    return made

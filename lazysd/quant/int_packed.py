"""Integers of few bits in 32-bit words (compressed-tensors, Kimi K2).

`X.weight_packed`, `X.weight_scale`, `X.weight_shape`. Codes are unsigned, and half their range is taken off them; with
zero points, which are packed along rows, those are. The shape is computed from the other tensors; `weight_shape`, which
is data, is read only where those leave a choice: with one scale a row, and where the last group is short.

Source: compressed-tensors 0.20, compressors/pack_quantized.
"""

from __future__ import annotations

from math import gcd
from typing import ClassVar

from ..errors import LayoutError
from ..graph.node import Node
from ..graph.rewrite import build
from . import compressed
from .base import FLOATS, Form, Parts, Scheme, Settings, and_fused, expect, label
from .nibbles import DecodeNibbles
from .reading import materialized
from .scaled import Dequantize
from .words import Unpack

_CODES = tuple(float(value) for value in range(16))
_INT4 = tuple(value - 8 for value in _CODES)


class IntPacked(Scheme):
    """Packed integers times scales."""

    name = "int-packed"
    methods = (compressed.METHOD,)
    wants = "I32"
    forms: ClassVar[tuple[Form, ...]] = and_fused(
        Form(
            ".weight",
            {"codes": ".weight_packed", "scale": ".weight_scale", "shape": ".weight_shape"},
            {"zero_point": ".weight_zero_point", "g_idx": ".weight_g_idx", "input_scale": ".input_global_scale"},
        )
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return expect(parts, "codes", "I32") and expect(parts, "scale", *FLOATS)

    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        bits, group, _ = self._widths(parts, settings)
        return (32 // gcd(32, bits) if "zero_point" in parts else 1), group  # zero points are packed along rows

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        packed, scale = parts["codes"], parts["scale"]
        if "g_idx" in parts:
            raise LayoutError("its columns are grouped by an index (weight_g_idx), which lazysd does not decode")
        if packed.ndim < 2 or scale.ndim != packed.ndim or scale.dims[:-1] != packed.dims[:-1]:
            raise ValueError(f"packed codes {label(packed)} and scales {label(scale)} have different rows")
        bits, group, columns = self._widths(parts, settings)
        zero = parts.get("zero_point")
        is_whole = bits == 4 and columns == 8 * packed.dims[-1]
        if is_whole and zero is None:
            return build(DecodeNibbles(_INT4, 8, group, code), (packed, scale))
        if zero is None:
            codes = build(Unpack(bits, -1, columns), (packed,))
            return build(Dequantize((1, group), code, zero=1 << (bits - 1)), (codes, scale))
        zeros = build(Unpack(bits, -2, packed.dims[-2]), (zero,))
        if is_whole:
            return build(DecodeNibbles(_CODES, 8, group, code, has_zeros=True), (packed, scale, zeros))
        codes = build(Unpack(bits, -1, columns), (packed,))
        return build(Dequantize((1, group), code), (codes, scale, zeros))

    def _widths(self, parts: Parts, settings: Settings) -> tuple[int, int, int]:
        """(bits, group, columns) of the one entry of config_groups that the shapes fit."""
        words, groups = parts["codes"].dims[-1], parts["scale"].dims[-1]
        found = set()
        for said in compressed.weight_arguments(settings):
            bits, group = said.get("num_bits"), said.get("group_size")
            if type(bits) is not int or not 1 <= bits <= 8:
                continue
            group = group if type(group) is int and group > 0 else None  # None: one scale a row
            columns = groups * group if group else 0
            if -(-columns * bits // 32) != words:  # rows that do not fill their words, or not their last group
                columns = _stated_columns(parts["shape"])
            if columns and -(-columns * bits // 32) == words and -(-columns // (group or columns)) == groups:
                found.add((bits, group or columns, columns))
        if len(found) == 1:
            return found.pop()
        if not settings:
            raise LayoutError(
                "no quantization_config states num_bits and group_size; "
                'give them: config={"quantization_config": {…}} as in config.json'
            )
        fits = "several fit" if found else "none fits"
        raise LayoutError(
            f"config_groups of config.json should say num_bits and group_size of {words} words and {groups} scales "
            f"a row, and {fits}"
        )


def _stated_columns(shape: Node) -> int:
    """The columns that `weight_shape` states; reads it. Of a fused group, those that all its parts state, or 0."""
    if shape.code not in ("I32", "I64") or not 1 <= shape.ndim <= 3 or shape.dims[-1] != 2:
        raise ValueError(f"weight_shape is {label(shape)}, expected the two sizes of a matrix")
    stated = {int(columns) for columns in materialized(shape).reshape(-1, 2)[:, 1].tolist()}
    return max(stated.pop(), 0) if len(stated) == 1 else 0


SCHEME = IntPacked()

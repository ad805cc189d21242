"""Integers of few bits in 32-bit words (compressed-tensors, Kimi K2).

`X.weight_packed`, `X.weight_scale`, `X.weight_shape`. Codes are unsigned, and half their range is taken off them; with
zero points, which are packed along rows, those are. `weight_shape` is data: the shape is computed from the other
tensors, which state it for groups, and for whole rows as long as they fill their words.

Source: compressed-tensors 0.20, compressors/pack_quantized.
"""

from __future__ import annotations

from typing import ClassVar

from ..errors import LayoutError
from ..graph.node import Node
from ..graph.rewrite import build
from . import compressed
from .base import FLOATS, Form, Parts, Scheme, Settings, and_fused, expect, label
from .nibbles import DecodeNibbles
from .scaled import Dequantize
from .words import Unpack

_INT4 = tuple(float(value - 8) for value in range(16))


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
        return None if "zero_point" in parts else (1, self._widths(parts["codes"], parts["scale"], settings)[1])

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        packed, scale = parts["codes"], parts["scale"]
        if "g_idx" in parts:
            raise LayoutError("its columns are grouped by an index (weight_g_idx), which lazysd does not decode")
        if packed.ndim < 2 or scale.ndim != packed.ndim or scale.dims[:-1] != packed.dims[:-1]:
            raise ValueError(f"packed codes {label(packed)} and scales {label(scale)} have different rows")
        bits, group, columns = self._widths(packed, scale, settings)
        zero = parts.get("zero_point")
        if bits == 4 and zero is None and columns == 8 * packed.dims[-1]:
            return build(DecodeNibbles(_INT4, 8, group, code), (packed, scale))
        if packed.ndim != 2:
            raise LayoutError(f"{bits}-bit integers in {packed.ndim} axes, or with zero points, are not decoded")
        codes = build(Unpack(bits, 1, columns), (packed,))
        if zero is None:
            return build(Dequantize((1, group), code, zero=1 << (bits - 1)), (codes, scale))
        zeros = build(Unpack(bits, 0, packed.dims[0]), (zero,))
        return build(Dequantize((1, group), code), (codes, scale, zeros))

    def _widths(self, packed: Node, scale: Node, settings: Settings) -> tuple[int, int, int]:
        """(bits, group, columns) of the one entry of config_groups that the shapes fit."""
        words, groups = packed.dims[-1], scale.dims[-1]
        found = set()
        for said in compressed.weight_arguments(settings):
            bits, group = said.get("num_bits"), said.get("group_size")
            if type(bits) is not int or not 1 <= bits <= 8:
                continue
            if type(group) is int and group > 0:
                columns = groups * group
            else:  # one scale a row
                columns = words * 32 // bits
                group = columns
            if columns and -(-columns * bits // 32) == words and -(-columns // group) == groups:
                found.add((bits, group, columns))
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


SCHEME = IntPacked()

"""FP8 and INT8 with one scale a tensor, a row, a group or a block: `X.weight` and `X.weight_scale`.

Source: compressed-tensors 0.20 (float-quantized, int-quantized, naive-quantized, mxfp8-quantized), ModelOpt (FP8),
fbgemm as transformers 5.23 writes it. The scale's shape says which it is.
"""

from __future__ import annotations

from typing import ClassVar

from ..graph.node import Node
from ..graph.rewrite import build
from . import compressed
from .base import FLOATS, FP8, Form, Parts, Scheme, Settings, and_fused, expect, label, longer, method_of
from .scaled import Dequantize, blocks_by_shape, spread_out


class EightBits(Scheme):
    """8-bit codes times scales."""

    name = "8-bit"
    methods = (compressed.METHOD, "modelopt", "fbgemm_fp8")
    wants = "FP8 or I8"
    forms: ClassVar[tuple[Form, ...]] = and_fused(
        Form(
            ".weight",
            {"codes": ".weight", "scale": ".weight_scale"},
            {
                "zero_point": ".weight_zero_point",
                "input_scale": ".input_scale",
                "input_zero_point": ".input_zero_point",
            },
        ),
        short=False,
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return expect(parts, "codes", *FP8, "I8") and expect(parts, "scale", *FLOATS, "U8", "F8_E8M0")

    def is_number(self, role: str, parts: Parts) -> bool:
        if role not in ("scale", "zero_point"):
            return role in (*self.numbers, "input_zero_point")
        codes, node = parts["codes"], parts[role]
        return node.ndim < codes.ndim and longer(node.dims) != longer(codes.dims[:-1])

    def turns(self, parts: Parts, settings: Settings) -> bool:
        return all(self.is_number(role, parts) for role in ("scale", "zero_point") if role in parts)

    def number_dims(self, settings: Settings) -> tuple[int, ...]:
        return (1,) if method_of(settings) == compressed.METHOD else ()

    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        return blocks_by_shape(parts["codes"].dims, parts["scale"].dims, compressed.blocks(settings))[0]

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        codes, scale = parts["codes"], parts["scale"]
        if codes.ndim < 2:
            raise ValueError(f"codes {label(codes)} are no matrix")
        block, shape = blocks_by_shape(codes.dims, scale.dims, compressed.blocks(settings))
        inputs = [codes, spread_out(scale, shape)]
        if "zero_point" in parts:
            inputs.append(spread_out(parts["zero_point"], shape))
        return build(Dequantize(block, code), inputs)


SCHEME = EightBits()

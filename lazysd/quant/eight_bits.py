"""FP8 and INT8 with one scale a tensor, a row, a group or a block: `X.weight` and `X.weight_scale`.

Source: compressed-tensors 0.20 (float-quantized, int-quantized, naive-quantized, mxfp8-quantized), ModelOpt (FP8),
fbgemm as transformers 5.23 writes it. The scale's shape says which it is.
"""

from __future__ import annotations

from typing import ClassVar

from ..graph.node import Node
from ..graph.rewrite import build, reshape
from . import compressed
from .base import FLOATS, FP8, Form, Parts, Scheme, Settings, and_fused, expect, label
from .scaled import Dequantize, block_counts


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
        )
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return expect(parts, "codes", *FP8, "I8") and expect(parts, "scale", *FLOATS, "U8", "F8_E8M0")

    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        return self._block(parts["codes"], parts["scale"], settings)[0]

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        codes, scale = parts["codes"], parts["scale"]
        if codes.ndim < 2:
            raise ValueError(f"codes {label(codes)} are no matrix")
        block, shape = self._block(codes, scale, settings)
        inputs = [codes, reshape(scale, shape)]
        if "zero_point" in parts:
            inputs.append(reshape(parts["zero_point"], shape))
        return build(Dequantize(block, code), inputs)

    def _block(self, codes: Node, scale: Node, settings: Settings) -> tuple[tuple[int, int], tuple[int, ...]]:
        """(rows and columns of a block, shape of the scales as one for each block)."""
        *lead, rows, columns = codes.dims
        if scale.numel() == 1 and not lead:
            return (rows, columns), (1, 1)
        squeezed = tuple(size for size in scale.dims if size != 1)
        if lead and squeezed == tuple(size for size in lead if size != 1) and scale.numel() != rows:
            return (rows, columns), (*lead, 1, 1)  # one for each expert
        if scale.dims in ((*lead, rows, 1), (*lead, rows)):
            return (1, columns), (*lead, rows, 1)
        if lead and scale.dims[:-1] == tuple(lead) and rows % scale.dims[-1] == 0:  # one for gate, one for up
            return (rows // scale.dims[-1], columns), (*scale.dims, 1)
        for block in compressed.blocks(settings):
            if scale.dims == block_counts(codes.dims, block):
                return block, scale.dims
        stated = ", ".join(f"{rows} x {columns}" for rows, columns in compressed.blocks(settings)) or "none"
        raise ValueError(
            f"scales {list(scale.dims)} are neither one for the tensor, nor one a row of codes {list(codes.dims)}, "
            f"nor one a block that config.json states ({stated})"
        )


SCHEME = EightBits()

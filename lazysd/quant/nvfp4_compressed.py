"""NVFP4 in compressed-tensors' naming: `X.weight_packed`, `X.weight_scale`, `X.weight_global_scale`.

The global scale is the reciprocal of ModelOpt's: a value is its code times (the group's scale / weight_global_scale).

Source: compressed-tensors 0.20, compressors/nvfp4 and entrypoints/convert/converters/modelopt_nvfp4.py.
"""

from __future__ import annotations

from typing import ClassVar

from ..graph.node import Node
from ..graph.rewrite import build
from . import compressed
from .base import Form, Parts, Scheme, Settings, expect
from .codes import FP4_VALUES
from .nibbles import DecodeNibbles
from .nvfp4_modelopt import GROUP


class Nvfp4Compressed(Scheme):
    """FP4 codes, one E4M3 scale for 16 of them, and one F32 scale for all, to divide by."""

    name = "nvfp4-compressed"
    methods = (compressed.METHOD,)
    wants = "U8"
    forms: ClassVar[tuple[Form, ...]] = (
        Form(
            ".weight",
            {"codes": ".weight_packed", "scale": ".weight_scale", "global_scale": ".weight_global_scale"},
            {"input_global_scale": ".input_global_scale"},
        ),
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return expect(parts, "codes", "U8") and expect(parts, "scale", "F8_E4M3")

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        op = DecodeNibbles(FP4_VALUES, 2, GROUP, code, divides=True)
        return build(op, (parts["codes"], parts["scale"], parts["global_scale"]))


SCHEME = Nvfp4Compressed()

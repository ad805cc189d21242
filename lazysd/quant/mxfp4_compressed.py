"""MXFP4 as compressed-tensors stores it: `X.weight_packed` (rows, columns/2) and `X.weight_scale`, exponents as bytes.

Source: compressed-tensors 0.20, compressors/mxfp4.
"""

from __future__ import annotations

from typing import ClassVar

from ..graph.node import Node
from ..graph.rewrite import build
from . import compressed
from .base import Form, Parts, Scheme, Settings, expect
from .codes import FP4_VALUES
from .mxfp4 import GROUP
from .nibbles import DecodeNibbles


class Mxfp4Compressed(Scheme):
    """FP4 codes, one power of two for 32 of them."""

    name = "mxfp4-compressed"
    methods = (compressed.METHOD,)
    wants = "U8"
    forms: ClassVar[tuple[Form, ...]] = (
        Form(
            ".weight",
            {"codes": ".weight_packed", "scale": ".weight_scale"},
            {"input_global_scale": ".input_global_scale"},
        ),
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return expect(parts, "codes", "U8") and expect(parts, "scale", "U8", "F8_E8M0")

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        return build(DecodeNibbles(FP4_VALUES, 2, GROUP, code), (parts["codes"], parts["scale"]))


SCHEME = Mxfp4Compressed()

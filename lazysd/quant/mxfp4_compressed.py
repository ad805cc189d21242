"""MXFP4 as compressed-tensors stores it: `X.weight_packed` (rows, columns/2) and `X.weight_scale`, exponents as bytes.

Source: compressed-tensors 0.20, compressors/mxfp4.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..graph.node import Node
from ..graph.rewrite import build
from . import compressed
from .base import Form, Parts, Scheme, Settings, and_fused, expect
from .codes import FP4_VALUES
from .fp4_encoding import Fp4Codes, Fp4Scale
from .mxfp4 import GROUP
from .nibbles import DecodeNibbles


class Mxfp4Compressed(Scheme):
    """FP4 codes, one power of two for 32 of them."""

    name = "mxfp4-compressed"
    methods = (compressed.METHOD,)
    lists = "ignore"
    wants = "U8"
    forms: ClassVar[tuple[Form, ...]] = and_fused(
        Form(
            ".weight",
            {"codes": ".weight_packed", "scale": ".weight_scale"},
            {"input_global_scale": ".input_global_scale"},
        )
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return expect(parts, "codes", "U8") and expect(parts, "scale", "U8", "F8_E8M0")

    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        return 1, GROUP

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        return build(DecodeNibbles(FP4_VALUES, 2, GROUP, code), (parts["codes"], parts["scale"]))

    def encode(self, node: Node, settings: Settings) -> dict[str, Node]:
        return {"codes": build(Fp4Codes(GROUP), (node,)), "scale": build(Fp4Scale(GROUP), (node,))}

    def written_config(self, settings: Settings) -> dict[str, Any]:
        weights = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": GROUP, "symmetric": True}
        return compressed.written("mxfp4-pack-quantized", {**weights, "scale_dtype": "torch.uint8"}, settings)


SCHEME = Mxfp4Compressed()

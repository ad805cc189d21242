"""MXFP4 as vLLM keeps gpt_oss's experts: `w13_weight` (E, 2I, H/2) and `w13_weight_scale` (E, 2I, H/32), both bytes.

Source: vLLM 0.11, model_executor/models/gpt_oss.py, which flattens blocks and changes nothing else.
"""

from __future__ import annotations

from typing import ClassVar

from ..graph.node import Node
from ..graph.rewrite import build
from .base import Form, Parts, Settings, expect
from .codes import FP4_VALUES
from .mxfp4 import GROUP, Mxfp4
from .nibbles import DecodeNibbles


class Mxfp4Vllm(Mxfp4):
    """The same rows, blocks side by side."""

    name = "mxfp4-vllm"
    transposes = False
    wants = "U8"
    forms: ClassVar[tuple[Form, ...]] = tuple(
        Form(name, {"codes": name, "scale": name + "_scale"}, common=True) for name in (".w13_weight", ".w2_weight")
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        codes, scale = parts["codes"], parts["scale"]
        rows = codes.ndim >= 2 and codes.dims[:-1] == scale.dims[:-1] and 2 * codes.dims[-1] == GROUP * scale.dims[-1]
        return expect(parts, "codes", "U8") and expect(parts, "scale", "U8", "F8_E8M0") and rows

    def rows(self, parts: Parts, code: str) -> Node:
        return build(DecodeNibbles(FP4_VALUES, 2, GROUP, code), (parts["codes"], parts["scale"]))

    def encode(self, node: Node, settings: Settings) -> dict[str, Node]:
        self.refuse("write")

    def laid(self, parts: Parts) -> dict[str, Node]:
        return dict(parts)

    def unlaid(self, parts: Parts) -> dict[str, Node]:
        return dict(parts)


SCHEME = Mxfp4Vllm()

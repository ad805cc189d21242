"""NVFP4 in ModelOpt's naming: `X.weight` (rows, columns/2), `X.weight_scale` (rows, columns/16), `X.weight_scale_2`.

A value is its code times the group's scale times weight_scale_2.

Source: NVIDIA Model-Optimizer, modelopt/torch/quantization/qtensor/nvfp4_tensor.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..errors import LayoutError
from ..graph.node import Node
from ..graph.rewrite import build
from .base import Form, Parts, Scheme, Settings, expect
from .codes import FP4_VALUES
from .nibbles import DecodeNibbles

GROUP = 16


class Nvfp4ModelOpt(Scheme):
    """FP4 codes, one E4M3 scale for 16 of them, and one F32 scale for all."""

    name = "nvfp4-modelopt"
    methods = ("modelopt", "nvfp4")
    wants = "U8"
    forms: ClassVar[tuple[Form, ...]] = (
        Form(
            ".weight",
            {"codes": ".weight", "scale": ".weight_scale", "global_scale": ".weight_scale_2"},
            {"input_scale": ".input_scale", "pre_quant_scale": ".pre_quant_scale"},
        ),
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return expect(parts, "codes", "U8") and expect(parts, "scale", "F8_E4M3")

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        if "pre_quant_scale" in parts:
            raise LayoutError(
                "its activations are scaled too (pre_quant_scale), so that a plain weight cannot stand alone"
            )
        op = DecodeNibbles(FP4_VALUES, 2, GROUP, code)
        return build(op, (parts["codes"], parts["scale"], parts["global_scale"]))

    def written_config(self, settings: Settings) -> dict[str, Any]:
        return {"quant_method": "modelopt", "quant_algo": "NVFP4", **settings}


SCHEME = Nvfp4ModelOpt()

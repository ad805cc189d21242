"""FP8 in blocks (DeepSeek-V3, Qwen3, …): `X.weight` and `X.weight_scale_inv`, also of fused groups.

Source: transformers 5.23, integrations/finegrained_fp8.py; blocks at the edge may be short here. Scales are F32,
E8M0 (`scale_fmt: "ue8m0"`), or exponents stored as bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..errors import LayoutError
from ..graph.node import Node
from ..graph.rewrite import build, reshape
from .base import FLOATS, FP8, Form, Parts, Scheme, Settings, and_fused, expect
from .fp8_encoding import QuantizeScale, QuantizeWeight
from .scaled import Dequantize, blocks_by_shape, spread_out

BLOCK = (128, 128)
_SCALES = (*FLOATS, "F8_E8M0", "U8")


def block_of(settings: Settings) -> tuple[int, int] | None:
    """The rows and columns of a block, as quantization_config states them; None where it does not.

    Raises LayoutError where what it states is no block.
    """
    size = settings.get("weight_block_size")
    if size is None:
        return None
    if not (isinstance(size, (list, tuple)) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise LayoutError(f"config.json: weight_block_size is {size!r}, expected two positive numbers")
    return size[0], size[1]


class Fp8Blocks(Scheme):
    """FP8 codes with one scale a block, to multiply with."""

    name = "fp8-blocks"
    methods = ("fp8",)
    wants = "FP8"
    forms: ClassVar[tuple[Form, ...]] = and_fused(
        Form(".weight", {"codes": ".weight", "scale": ".weight_scale_inv"}, {"activation_scale": ".activation_scale"})
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return expect(parts, "codes", *FP8) and expect(parts, "scale", *_SCALES)

    def number_dims(self, settings: Settings) -> tuple[int, ...]:
        return ()

    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        if block_of(settings) is None and self._is_one(parts):
            return blocks_by_shape(parts["codes"].dims, parts["scale"].dims, [])[0]
        return block_of(settings) or BLOCK

    def is_number(self, role: str, parts: Parts) -> bool:
        return role in self.numbers or (role == "scale" and parts["scale"].ndim < parts["codes"].ndim)

    def turns(self, parts: Parts, settings: Settings) -> bool:
        block = block_of(settings)
        return block is None or block[0] == block[1]

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        codes, scale = parts["codes"], parts["scale"]
        block = block_of(settings)
        if block is None and self._is_one(parts):
            block, shape = blocks_by_shape(codes.dims, scale.dims, [])
            scale = spread_out(scale, shape)
        return build(Dequantize(block or BLOCK, code), (codes, scale))

    def _is_one(self, parts: Parts) -> bool:
        """Whether a scale is one number for all of a matrix, which is so where no block is stated."""
        codes, scale = parts["codes"], parts["scale"]
        return codes.ndim >= 2 and (scale.ndim < codes.ndim or scale.numel() == 1)

    def encode(self, node: Node, settings: Settings) -> dict[str, Node]:
        block = block_of(settings) or BLOCK
        if node.ndim < 2 or node.dims[-2] % block[0] or node.dims[-1] % block[1]:  # transformers reads no short blocks
            raise ValueError(f"{list(node.dims)} does not divide into blocks of {list(block)}")
        scale_code = "F8_E8M0" if settings.get("scale_fmt") == "ue8m0" else "F32"
        return {
            "codes": build(QuantizeWeight(block, scale_code), (node,)),
            "scale": build(QuantizeScale(block, scale_code), (node,)),
        }

    def encode_again(self, node: Node, parts: Parts, settings: Settings) -> dict[str, Node]:
        (rows, columns), scale = self.cell(parts, settings) or BLOCK, parts["scale"]
        code = "F8_E8M0" if scale.code == "F8_E8M0" else "F32"
        made = build(QuantizeScale((rows, columns), code), (node,))
        return {
            "codes": build(QuantizeWeight((rows, columns), code), (node,)),
            "scale": reshape(made, scale.dims) if made.numel() == scale.numel() else made,
        }

    def written_config(self, settings: Settings) -> dict[str, Any]:
        said = {"quant_method": "fp8", "activation_scheme": "dynamic"}
        return {**said, **settings, "weight_block_size": list(block_of(settings) or BLOCK)}


SCHEME = Fp8Blocks()


def settings_for(block: tuple[int, int]) -> Mapping[str, Any]:
    """What quantization_config would say of blocks of this size."""
    return {"quant_method": "fp8", "weight_block_size": list(block)}

"""NVFP4 in compressed-tensors' naming: `X.weight_packed`, `X.weight_scale`, `X.weight_global_scale`.

The global scale is the reciprocal of ModelOpt's: a value is its code times (the group's scale / weight_global_scale).

Source: compressed-tensors 0.20, compressors/nvfp4 and entrypoints/convert/converters/modelopt_nvfp4.py.
"""

from __future__ import annotations

from ctypes import c_float
from typing import Any, ClassVar

from ..graph.node import Node
from ..graph.rewrite import reshape
from . import compressed
from .base import Form, Parts, Scheme, Settings, and_fused, expect
from .nvfp4_modelopt import GROUP, constant, decoded, each_part, encoded, global_scale
from .nvfp4_values import from_mxfp4, reciprocal

WEIGHTS = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": GROUP, "symmetric": True}


class Nvfp4Compressed(Scheme):
    """FP4 codes, one E4M3 scale for 16 of them, and one F32 scale for all, to divide by."""

    name = "nvfp4-compressed"
    methods = (compressed.METHOD,)
    lists = "ignore"
    wants = "U8"
    forms: ClassVar[tuple[Form, ...]] = and_fused(
        Form(
            ".weight",
            {"codes": ".weight_packed", "scale": ".weight_scale", "global_scale": ".weight_global_scale"},
            {"input_global_scale": ".input_global_scale"},
        )
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return expect(parts, "codes", "U8") and expect(parts, "scale", "F8_E4M3")

    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        return 1, GROUP

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        return decoded(parts, code, divides=True)

    def encode(self, node: Node, settings: Settings) -> dict[str, Node]:
        stored = c_float(1 / global_scale(node)).value
        return {**encoded(node, c_float(1 / stored).value), "global_scale": constant(node, stored, (1,))}

    def encode_again(self, node: Node, parts: Parts, settings: Settings) -> dict[str, Node]:
        return each_part(node, parts["global_scale"], lambda part: self.encode(part, settings))

    def take_over(self, other: Scheme, parts: Parts, settings: Settings) -> dict[str, Node] | None:
        if other.name == "nvfp4-modelopt":
            made = {"codes": parts["codes"], "scale": parts["scale"]}
            made["global_scale"] = reshape(reciprocal(parts["global_scale"]), (1,))
            if "input_scale" in parts:
                made["input_global_scale"] = reshape(reciprocal(parts["input_scale"]), (1,))
            return made
        if other.name in ("mxfp4-compressed", "mxfp4-original", "mxfp4-vllm"):
            codes, scale, total = from_mxfp4(parts)
            return {"codes": codes, "scale": scale, "global_scale": constant(codes, 1 / total, (1,))}
        return None

    def written_config(self, settings: Settings) -> dict[str, Any]:
        return compressed.written("nvfp4-pack-quantized", WEIGHTS, settings)

    def with_activations(self, config: dict[str, Any]) -> dict[str, Any]:
        made = compressed.written("nvfp4-pack-quantized", WEIGHTS, {})["config_groups"]
        if config.get("config_groups") != made:  # a caller's own
            return config
        activations = {**WEIGHTS, "dynamic": "local"}
        groups = {name: {**group, "input_activations": activations} for name, group in made.items()}
        return {**config, "config_groups": groups}


SCHEME = Nvfp4Compressed()

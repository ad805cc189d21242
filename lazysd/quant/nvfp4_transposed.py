"""NVFP4 of experts that are stored transposed: codes (…, columns/2, rows) and scales (…, columns/16, rows).

ModelOpt packs along the axis of a product, which is the one before the last where a model keeps `gate_up_proj` as
(experts, hidden, 2 * intermediate): Llama 4, gpt-oss. So it does for us where a layout transposes: no code changes.

Source: TensorRT-LLM 1.0, _torch/modules/fused_moe/quantization.py (FUSED_GATE_UP_PROJ), which transposes both, and a
fork of transformers that writes out the shapes of nvidia/Llama-4-Scout-17B-16E-Instruct-FP4. No header was at hand.
"""

from __future__ import annotations

from typing import Any

from ..graph.node import Node
from ..graph.ops import Permute
from ..graph.rewrite import build
from .base import Form, Parts, Scheme, Settings
from .nvfp4_modelopt import GROUP, Nvfp4ModelOpt, is_transposed


class Nvfp4Transposed(Nvfp4ModelOpt):
    """The same codes, columns before rows."""

    name = "nvfp4-transposed"
    rows_last = True

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return self.has_types(parts) and is_transposed(parts)

    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        return GROUP, 1

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        return _turned(super().decode(_all_turned(parts), code, settings))

    def encode(self, node: Node, settings: Settings) -> dict[str, Node]:
        self.refuse("write")

    def encode_again(self, node: Node, parts: Parts, settings: Settings) -> dict[str, Node]:
        from .nvfp4_modelopt import SCHEME as ROWS_FIRST

        return _all_turned(ROWS_FIRST.encode_again(_turned(node), parts, settings))

    def take_over(self, other: Scheme, parts: Parts, settings: Settings) -> dict[str, Node] | None:
        return None

    def carried_as(self, key: str, turned: bool) -> tuple[Scheme, Form] | None:
        from .nvfp4_modelopt import SCHEME as ROWS_FIRST

        return self.named(ROWS_FIRST if turned else self, key)

    def written_config(self, settings: Settings) -> dict[str, Any]:
        self.refuse("write")


def _turned(node: Node) -> Node:
    n = node.ndim
    return build(Permute((*range(n - 2), n - 1, n - 2)), (node,))


def _all_turned(parts: Parts) -> dict[str, Node]:
    return {role: _turned(node) if role in ("codes", "scale") else node for role, node in parts.items()}


SCHEME = Nvfp4Transposed()

"""MXFP4 as in gpt_oss's original files: `mlp1_weight.blocks` and `mlp1_weight.scales`, not transposed.

Source: openai/gpt-oss, gpt_oss/torch/weights.py.
"""

from __future__ import annotations

from typing import ClassVar

from ..graph.node import Node
from .base import Form, Parts, Settings
from .mxfp4 import Mxfp4


class Mxfp4Original(Mxfp4):
    """The same blocks and scales under other names, rows as they are."""

    name = "mxfp4-original"
    forms: ClassVar[tuple[Form, ...]] = (
        Form("", {"codes": ".blocks", "scale": ".scales"}, anchor="codes", common=True),
    )

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        return self.rows(parts, code)

    def encode(self, node: Node, settings: Settings) -> dict[str, Node]:
        return self.encode_rows(node)


SCHEME = Mxfp4Original()

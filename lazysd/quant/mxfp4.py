"""MXFP4 as gpt_oss stores it: `X_blocks` and `X_scales`, and `X.blocks` and `X.scales` of its original files.

Blocks are U8 (..., G, 16), two values a byte, low nibble first; scales U8 (..., G), exponents with bias 127.
transformers transposes on load: `gate_up_proj_blocks` (E, 2I, H/32, 16) becomes `gate_up_proj` (E, H, 2I). The original
files' `mlp1_weight` is not transposed.

Source: transformers 5.23, integrations/mxfp4.py; OCP Microscaling Formats 1.0.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..graph.node import Node
from ..graph.ops import Permute
from ..graph.rewrite import build, reshape
from .base import Form, Parts, Scheme, Settings, expect, label
from .codes import FP4_VALUES
from .fp4_encoding import Fp4Codes, Fp4Scale
from .nibbles import DecodeNibbles

GROUP = 32


class Mxfp4(Scheme):
    """FP4 codes, one power of two for 32 of them, transposed once decoded."""

    name = "mxfp4"
    methods = ("mxfp4",)
    transposes: ClassVar[bool] = True  # whether the plain weight has the stored rows as its columns
    keeps_rows = True
    of_stacks = True
    wants = "U8 in blocks of 16 bytes"
    forms: ClassVar[tuple[Form, ...]] = (
        Form("", {"codes": "_blocks", "scale": "_scales"}, anchor="codes", common=True),
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        codes, scale = parts["codes"], parts["scale"]
        return (
            expect(parts, "codes", "U8")
            and expect(parts, "scale", "U8", "F8_E8M0")
            and codes.ndim >= 3
            and codes.dims[-1] == GROUP // 2
            and codes.dims[:-1] == scale.dims
        )

    def rows(self, parts: Parts, code: str) -> Node:
        """The plain weight as its rows are stored: (..., rows, columns)."""
        codes, scale = parts["codes"], parts["scale"]
        if codes.dims[:-1] != scale.dims:
            raise ValueError(f"blocks {label(codes)} need one scale each, got {label(scale)}")
        packed = reshape(codes, (*codes.dims[:-2], codes.dims[-2] * codes.dims[-1]))
        return build(DecodeNibbles(FP4_VALUES, 2, GROUP, code), (packed, scale))

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        return self._turned(self.rows(parts, code))

    def encode(self, node: Node, settings: Settings) -> dict[str, Node]:
        rows = self._turned(node)
        codes = build(Fp4Codes(GROUP), (rows,))
        scale = build(Fp4Scale(GROUP), (rows,))
        return {"codes": reshape(codes, (*scale.dims, GROUP // 2)), "scale": scale}

    def _turned(self, node: Node) -> Node:
        """Stored rows as the plain weight has them, or the other way round."""
        n = node.ndim
        return build(Permute((*range(n - 2), n - 1, n - 2)), (node,)) if self.transposes and n > 1 else node

    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        return (GROUP, 1) if self.transposes else (1, GROUP)

    def carried_as(self, key: str, turned: bool) -> tuple[Scheme, Form] | None:
        from . import mxfp4_original, mxfp4_vllm

        if self.transposes != turned:
            return SCHEME, SCHEME.forms[0]
        for scheme in (mxfp4_vllm.SCHEME, mxfp4_original.SCHEME):
            if form := next((form for form in scheme.forms if key.endswith(form.weight)), None):
                return scheme, form
        return None

    def laid(self, parts: Parts) -> dict[str, Node]:
        codes = parts["codes"]
        packed = reshape(codes, (*codes.dims[:-2], codes.dims[-2] * codes.dims[-1]))
        return {"codes": self._turned(packed), "scale": self._turned(parts["scale"])}

    def unlaid(self, parts: Parts) -> dict[str, Node]:
        codes, scale = (self._turned(parts[role]) for role in ("codes", "scale"))
        return {"codes": reshape(codes, (*scale.dims, GROUP // 2)), "scale": scale}

    def written_config(self, settings: Settings) -> dict[str, Any]:
        return {"quant_method": "mxfp4", **settings}


SCHEME = Mxfp4()

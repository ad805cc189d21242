"""GPTQ: `X.qweight` (columns * bits / 32, rows), `X.qzeros`, `X.scales` (groups, rows), and `X.g_idx` (columns).

Stored zero points are one less than they are, except where checkpoint_format is "gptq_v2". Column k of the weight
belongs to group g_idx[k]; without g_idx, to group k // group_size.

Source: AutoGPTQ 0.7, qlinear_cuda_old.py; GPTQModel, nn_modules/qlinear; vLLM, gptq.py (v2).
"""

from __future__ import annotations

from typing import ClassVar

from ..errors import LayoutError
from ..graph.node import Node
from ..graph.ops import Permute
from ..graph.rewrite import build
from .base import FLOATS, Form, Parts, Scheme, Settings, expect, label
from .scaled import Dequantize
from .words import PickRows, Unpack


class Gptq(Scheme):
    """Packed integers with zero points and scales a group; stored transposed."""

    name = "gptq"
    methods = ("gptq",)
    wants = "I32 (columns * bits / 32, rows)"
    forms: ClassVar[tuple[Form, ...]] = (
        Form(
            ".weight",
            {"codes": ".qweight", "zeros": ".qzeros", "scale": ".scales"},
            {"g_idx": ".g_idx"},
            anchor="codes",
        ),
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        codes, scale = parts["codes"], parts["scale"]
        return (
            expect(parts, "codes", "I32")
            and expect(parts, "scale", *FLOATS)
            and codes.ndim == 2 == scale.ndim
            and codes.dims[1] == scale.dims[1]  # AWQ packs along these
        )

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        packed, scale, index = parts["codes"], parts["scale"], parts.get("g_idx")
        bits = self._bits(packed, parts["zeros"], scale, settings)
        columns = packed.dims[0] * 32 // bits
        codes = build(Unpack(bits, -2, columns), (packed,))
        plus = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
        zeros = build(Unpack(bits, -1, scale.dims[1], plus), (parts["zeros"],))
        group = 1
        if index is not None:
            if index.dims != (columns,):
                raise ValueError(f"g_idx {label(index)} should name the group of each of {columns} columns")
            scale, zeros = build(PickRows(), (scale, index)), build(PickRows(), (zeros, index))
        else:
            group = self._group(columns, scale.dims[0], settings)
        made = build(Dequantize((group, 1), code), (codes, scale, zeros))
        return build(Permute((1, 0)), (made,))

    def _bits(self, packed: Node, zeros: Node, scale: Node, settings: Settings) -> int:
        """Bits of a code: stated, and what the packed zero points take."""
        rows = scale.dims[1]
        found = [bits for bits in (2, 3, 4, 8) if zeros.dims == (scale.dims[0], -(-rows * bits // 32))]
        stated = settings.get("bits")
        if stated is not None and stated not in found:
            raise LayoutError(f"config.json says {stated!r} bits, its zero points {label(zeros)} do not fit them")
        if len(found) != 1 and stated is None:
            raise LayoutError(f"nothing states its bits, and zero points {label(zeros)} fit {found or 'none'}")
        return int(stated if stated is not None else found[0])

    def _group(self, columns: int, groups: int, settings: Settings) -> int:
        stated = settings.get("group_size")
        if type(stated) is int and stated > 0:
            return stated
        if groups and columns % groups == 0:
            return columns // groups
        raise LayoutError(f"nothing states its group_size, and {groups} groups do not divide {columns} columns")


SCHEME = Gptq()

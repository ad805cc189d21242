"""AWQ (AutoAWQ's "gemm"): `X.qweight` (columns, rows / 8), `X.qzeros` (groups, rows / 8), `X.scales` (groups, rows).

Eight rows share a word, in the order 0 2 4 6 1 3 5 7. Zero points are stored as they are.

Source: AutoAWQ 0.2, awq/utils/packing_utils.py; compressed-tensors 0.20, converters/autoawq.py.
"""

from __future__ import annotations

from typing import ClassVar

from ..errors import LayoutError
from ..graph.node import Node
from ..graph.ops import Permute
from ..graph.rewrite import build
from .base import FLOATS, Form, Parts, Scheme, Settings, expect, label
from .scaled import Dequantize
from .words import Unpack

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in its word row k of eight stands


class Awq(Scheme):
    """Packed 4-bit integers with zero points and scales a group; stored transposed."""

    name = "awq"
    methods = ("awq",)
    wants = "I32 (columns, rows / 8)"
    forms: ClassVar[tuple[Form, ...]] = (
        Form(".weight", {"codes": ".qweight", "zeros": ".qzeros", "scale": ".scales"}, anchor="codes"),
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        codes, scale = parts["codes"], parts["scale"]
        return (
            expect(parts, "codes", "I32")
            and expect(parts, "scale", *FLOATS)
            and codes.ndim == 2 == scale.ndim
            and codes.dims[1] * 8 == scale.dims[1]
        )

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        packed, scale = parts["codes"], parts["scale"]
        if settings.get("bits", 4) != 4 or str(settings.get("version", "gemm")).lower() != "gemm":
            raise LayoutError(
                f"config.json says {settings.get('bits', 4)!r} bits, version {settings.get('version', 'gemm')!r}; "
                "only 4 bits in version 'gemm' are known"
            )
        columns, (groups, rows) = packed.dims[0], scale.dims
        group = settings.get("group_size")
        if type(group) is not int or group <= 0:
            if not groups or columns % groups:
                raise ValueError(f"codes {label(packed)} do not divide into the {groups} groups of {label(scale)}")
            group = columns // groups
        codes = build(Unpack(4, -1, rows, order=_PLACES), (packed,))
        zeros = build(Unpack(4, -1, rows, order=_PLACES), (parts["zeros"],))
        made = build(Dequantize((group, 1), code), (codes, scale, zeros))
        return build(Permute((1, 0)), (made,))


SCHEME = Awq()

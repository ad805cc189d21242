"""bitsandbytes: recognised by name, carried as it is, never decoded.

Source: bitsandbytes 0.45, functional.py (`QuantState.as_dict`), nn/modules.py (Linear8bitLt).
"""

from __future__ import annotations

from typing import ClassVar

from ..graph.node import Node
from .base import Form, Parts, Scheme, Settings


class BitsAndBytes(Scheme):
    """NF4, FP4 and INT8 weights whose tables are in tensors, and whose shapes are in pickled bytes."""

    name = "bitsandbytes"
    methods = ("bitsandbytes",)
    wants = "U8 or I8"
    forms: ClassVar[tuple[Form, ...]] = (
        Form(".weight", {"codes": ".weight", "scale": ".weight.absmax"}),
        Form(".weight", {"codes": ".weight", "scale": ".SCB"}),
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return True

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        self.refuse("decode")


SCHEME = BitsAndBytes()

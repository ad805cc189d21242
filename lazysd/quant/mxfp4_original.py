"""MXFP4 as in gpt_oss's original files: `mlp1_weight.blocks` and `mlp1_weight.scales`, not transposed.

Source: openai/gpt-oss, gpt_oss/torch/weights.py.
"""

from __future__ import annotations

from typing import ClassVar

from .base import Form
from .mxfp4 import Mxfp4


class Mxfp4Original(Mxfp4):
    """The same blocks and scales under other names, rows as they are."""

    name = "mxfp4-original"
    transposes = False
    forms: ClassVar[tuple[Form, ...]] = (
        Form("", {"codes": ".blocks", "scale": ".scales"}, anchor="codes", common=True),
    )


SCHEME = Mxfp4Original()

"""Two checkpoints side by side: every bit, what adapters state, and how far they lie apart."""

from __future__ import annotations

from .bits import compare, compare_adapters
from .magnitude import Magnitude
from .result import ABSENT, Comparison, Difference

__all__ = ["ABSENT", "Comparison", "Difference", "Magnitude", "compare", "compare_adapters"]

"""Hypothesis strategies and assertions for converters: lazysd's own tests use them, and so can anyone's.

The assertions need torch alone; the strategies (`checkpoints`, `lazy_tensors`, `slices`) need hypothesis, which is
imported when one of them is first asked for. docs/testing.md has an example that runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .assertions import assert_reads_only, assert_round_trip, assert_same_bytes, recorded_reads

if TYPE_CHECKING:
    from .graphs import Drawn, lazy_tensors, slices
    from .state_dicts import checkpoints

_STRATEGIES = {"Drawn": "graphs", "checkpoints": "state_dicts", "lazy_tensors": "graphs", "slices": "graphs"}


def __getattr__(name: str) -> Any:
    if name not in _STRATEGIES:
        raise AttributeError(f"module 'lazysd.testing' has no attribute {name!r}")
    try:
        import hypothesis  # noqa: F401 - only to say what is missing before anything else fails
    except ImportError as error:
        raise ImportError(f"lazysd.testing.{name} needs hypothesis: pip install hypothesis") from error
    return getattr(importlib.import_module(f".{_STRATEGIES[name]}", __name__), name)


__all__ = [
    "Drawn",
    "assert_reads_only",
    "assert_round_trip",
    "assert_same_bytes",
    "checkpoints",
    "lazy_tensors",
    "recorded_reads",
    "slices",
]

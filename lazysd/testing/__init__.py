"""Hypothesis strategies and assertions for converters: lazysd's own tests use them, and so can anyone's.

The assertions need torch alone; the strategies need hypothesis, which is imported when one of them is first asked for.
docs/testing.md has examples that run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .comparing import assert_same_bytes
from .conversions import assert_refuses, assert_round_trip, assert_same_conversion
from .memory import assert_peak_memory
from .reading import assert_reads_only, recorded_reads
from .values import StateDict, state_dict

if TYPE_CHECKING:
    from .graphs import Drawn, lazy_tensors, slices
    from .strategies import checkpoints, state_dicts, state_dicts_like

_STRATEGIES = {"Drawn": "graphs", "lazy_tensors": "graphs", "slices": "graphs"}
_STRATEGIES |= dict.fromkeys(("checkpoints", "state_dicts", "state_dicts_like"), "strategies")


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
    "StateDict",
    "assert_peak_memory",
    "assert_reads_only",
    "assert_refuses",
    "assert_round_trip",
    "assert_same_bytes",
    "assert_same_conversion",
    "checkpoints",
    "lazy_tensors",
    "recorded_reads",
    "slices",
    "state_dict",
    "state_dicts",
    "state_dicts_like",
]

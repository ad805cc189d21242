"""lazysd: lazy state dicts. Open checkpoints of any size, convert between layouts, move bytes only when asked.

>>> import lazysd
>>> lazysd.layouts.names("qwen3_moe")[:3]
['hf', 'hf-fused', 'nemo']

Importing lazysd imports neither torch nor numpy; both are imported when a tensor is first materialised.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import dialects, errors, families, layouts
from ._version import __version__
from .checkpoint import Checkpoint
from .conversion import convert
from .graph.rewrite import concat, stack
from .opening import open
from .tensor.lazy import LazyTensor
from .tensor.wrapping import from_torch

if TYPE_CHECKING:
    from . import adapters, distributed, testing
    from .comparing import compare
    from .load import load_into
    from .tensor.cache import cached


_LAZY = {
    "cached": "tensor.cache",
    "compare": "comparing",
    "load_into": "load",
}  # imported when first asked for; some need torch
_ROOMS = ("adapters", "distributed", "testing")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'lazysd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "Checkpoint",
    "LazyTensor",
    "__version__",
    "adapters",
    "cached",
    "compare",
    "concat",
    "convert",
    "dialects",
    "distributed",
    "errors",
    "families",
    "from_torch",
    "layouts",
    "load_into",
    "open",
    "stack",
    "testing",
]

"""lazysd: lazy state dicts. Open checkpoints of any size, convert between layouts, move bytes only when asked.

>>> import lazysd
>>> lazysd.layouts.names("qwen3_moe")[:3]
['hf', 'hf-fused', 'nemo']

Importing lazysd imports nothing but itself, and of that little: each name is imported when somebody first asks for it,
numpy when bytes are first moved, torch when a tensor is first handed out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import dialects, families
from ._lazily import attributes
from ._version import __version__

if TYPE_CHECKING:
    from . import adapters, distributed, errors, layouts, testing
    from .checkpoint import Checkpoint
    from .comparing import compare
    from .conversion import convert
    from .load import load_into
    from .opening import open
    from .tensor.cache import cached
    from .tensor.joining import concat, stack
    from .tensor.lazy import LazyTensor
    from .tensor.wrapping import from_torch

__getattr__ = attributes(
    __name__,
    {
        "Checkpoint": ".checkpoint",
        "LazyTensor": ".tensor.lazy",
        "cached": ".tensor.cache",
        "compare": ".comparing",
        "concat": ".tensor.joining",
        "convert": ".conversion",
        "from_torch": ".tensor.wrapping",
        "load_into": ".load",
        "open": ".opening",
        "stack": ".tensor.joining",
    },
)  # what else is asked for is a file or a room


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

"""lazysd: lazy state dicts. Open checkpoints of any size, convert between layouts, move bytes only when asked.

>>> import lazysd
>>> sorted(lazysd.layouts.names("qwen3_moe"))[:3]
['hf', 'hf-fused', 'nemo']

Importing lazysd imports neither torch nor numpy; both are imported when a tensor is first materialised.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors, layouts
from ._version import __version__
from .checkpoint import Checkpoint, from_torch
from .conversion import convert
from .execute import engine as _engine
from .graph import node as _node
from .graph.node import LazyTensor
from .graph.rewrite import concat, stack
from .opening import open

if TYPE_CHECKING:
    from . import adapters, distributed, testing
    from .execute.cache import cached
    from .execute.load import load_into


class _Engine:
    """The rooms above the graph, as the graph sees them."""

    materialize = staticmethod(_engine.materialize)
    reads = staticmethod(_engine.reads)
    index = staticmethod(_engine.index)
    method = staticmethod(_engine.method)
    torch_function = staticmethod(_engine.torch_function)

    @staticmethod
    def operate(node: LazyTensor, name: str, others: Any) -> Any:
        from .execute import interop

        return interop.operate(node, name, others)

    @staticmethod
    def html(shown: Any) -> str:
        from .display.html import to_html

        return to_html(shown)


_node.engine = _Engine()

_LAZY = {"cached": "execute.cache", "load_into": "execute.load"}  # imported when first asked for; some need torch
_ROOMS = ("adapters", "distributed", "testing")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'lazysd' has no attribute {name!r}")


__all__ = [
    "Checkpoint",
    "LazyTensor",
    "__version__",
    "adapters",
    "cached",
    "concat",
    "convert",
    "distributed",
    "errors",
    "from_torch",
    "layouts",
    "load_into",
    "open",
    "stack",
    "testing",
]

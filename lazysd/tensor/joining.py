"""stack() and concat() as users call them: any sequence of lazy and torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..arguments import as_int, checked
from ..graph import rewrite
from .lazy import LazyTensor
from .wrapping import as_lazy

if TYPE_CHECKING:
    import torch


@checked
def stack(tensors: Sequence[LazyTensor | torch.Tensor], dim: int = 0) -> LazyTensor:
    """Tensors of one shape and dtype along a new axis `dim`, lazily.

    >>> import torch, lazysd
    >>> lazysd.stack([lazysd.from_torch(torch.ones(3))] * 2, dim=1).shape
    torch.Size([3, 2])

    Raises:
        ValueError: none, or shapes or dtypes that differ. IndexError: no such axis.
    """
    return rewrite.stack(tuple(map(as_lazy, tensors)), as_int("dim", dim))


@checked
def concat(tensors: Sequence[LazyTensor | torch.Tensor], dim: int = 0) -> LazyTensor:
    """Tensors end to end along axis `dim`, lazily; the other axes and the dtype are the same.

    >>> import torch, lazysd
    >>> lazysd.concat([lazysd.from_torch(torch.ones(3)), torch.zeros(2)]).shape
    torch.Size([5])

    Raises:
        ValueError: none, or shapes or dtypes that differ. IndexError: no such axis.
    """
    return rewrite.concat(tuple(map(as_lazy, tensors)), as_int("dim", dim))

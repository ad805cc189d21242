"""torch tensors as leaves of a graph."""

from __future__ import annotations

from typing import Any

from .. import dtypes
from ..graph.leaves import InMemory
from .lazy import LazyTensor


def as_lazy(value: Any) -> LazyTensor:
    """A lazy tensor as it is, a torch tensor wrapped."""
    return value if isinstance(value, LazyTensor) else from_torch(value)


def from_torch(tensor: Any) -> LazyTensor:
    """A lazy tensor over a torch tensor in memory; strided views stay views, conjugated ones are copied.

    >>> import torch, lazysd
    >>> lazysd.from_torch(torch.zeros(2, 3)).permute(1, 0).shape
    torch.Size([3, 2])
    """
    tensor = tensor.resolve_conj().resolve_neg()  # the very same object, unless its bits are not its values
    return LazyTensor(InMemory(tensor), (), tuple(tensor.shape), dtypes.from_torch(tensor.dtype))

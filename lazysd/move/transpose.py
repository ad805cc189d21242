"""The one function that copies a strided block into a strided block; which kernel does it depends on what is there."""

from __future__ import annotations

from functools import cache

from ..doors import ranked
from ..graph.boxes import Dims
from . import kernels
from .kernels.base import Kernel, Strided


@cache
def members() -> tuple[Kernel, ...]:
    """Every `KERNEL` that a file of `move/kernels` defines, the preferred ones first."""
    return ranked(kernels.__name__, "KERNEL")


def chosen() -> Kernel:
    """The kernel that does the work at this moment."""
    return next(kernel for kernel in members() if kernel.is_available())


def copy(dims: Dims, itemsize: int, target: Strided, source: Strided) -> None:
    """target[...] = source[...], element by element, every bit kept.

    Args:
        dims: shape of both blocks.
        itemsize: 1, 2, 4 or 8 bytes an element.
        target, source: where the elements lie; memory that the two share, and targets whose elements share a place,
            are refused.

    Raises:
        ValueError: a block leaves its memory, or is refused; nothing has been written then.
    """
    chosen().copy(dims, itemsize, target, source)

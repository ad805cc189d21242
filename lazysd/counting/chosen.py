"""Which kernel counts depends on what is there."""

from __future__ import annotations

from functools import cache

from ..doors import ranked
from . import kernels
from .kernels.base import Kernel


@cache
def members() -> tuple[Kernel, ...]:
    """Every `KERNEL` that a file of `counting/kernels` defines, the preferred ones first."""
    return ranked(kernels.__name__, "KERNEL")


def kernel() -> Kernel:
    """The kernel that does the work at this moment."""
    return next(kernel for kernel in members() if kernel.is_available())

"""Which kernel counts depends on what is there."""

from __future__ import annotations

from functools import cache

from ..doors import members_of
from . import kernels
from .kernels.base import Kernel


@cache
def members() -> tuple[Kernel, ...]:
    """Every `KERNEL` that a file of `counting/kernels` defines, the preferred ones first."""
    found: list[Kernel] = members_of(kernels.__name__, "KERNEL")
    return tuple(sorted(found, key=lambda kernel: kernel.rank))


def kernel() -> Kernel:
    """The kernel that does the work at this moment."""
    return next(kernel for kernel in members() if kernel.is_available())

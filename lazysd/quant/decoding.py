"""The one function that decodes codes and scales; which kernel does it depends on what is there."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..doors import ranked
from . import kernels
from .kernels.base import Kernel, Request

if TYPE_CHECKING:
    import torch


@cache
def members() -> tuple[Kernel, ...]:
    """Every `KERNEL` that a file of `quant/kernels` defines, the preferred ones first."""
    return ranked(kernels.__name__, "KERNEL")


def decode(target: torch.Tensor, wanted: Request) -> None:
    """Write (values of codes - zeros) * scales into a target of any strides, rounded once to its dtype."""
    next(kernel for kernel in members() if kernel.takes(target)).decode(target, wanted)

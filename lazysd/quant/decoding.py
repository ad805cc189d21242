"""The one function that decodes codes and scales; which kernel does it depends on what is there."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from . import kernels
from .kernels.base import Kernel, Request

if TYPE_CHECKING:
    import torch


@cache
def members() -> tuple[Kernel, ...]:
    """Every `KERNEL` that a file of `quant/kernels` defines, the preferred ones first."""
    found = [
        importlib.import_module(f"{kernels.__name__}.{item.name}") for item in pkgutil.iter_modules(kernels.__path__)
    ]
    members: list[Kernel] = [module.KERNEL for module in found if hasattr(module, "KERNEL")]
    return tuple(sorted(members, key=lambda kernel: kernel.rank))


def decode(target: torch.Tensor, wanted: Request) -> None:
    """Write (values of codes - zeros) * scales into a target of any strides, rounded once to its dtype."""
    next(kernel for kernel in members() if kernel.takes(target)).decode(target, wanted)

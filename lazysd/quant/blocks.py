"""Which blocks of an axis a slice touches, and the numbers of blocks spread over its indices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def blocks_of(axis: range, size: int) -> range:
    """The blocks of `size` indices that an axis of a box touches; every one of them where it steps by whole blocks."""
    if not axis:
        return range(0)
    if axis.step > size and axis.step % size == 0:
        return range(axis[0] // size, axis[-1] // size + 1, axis.step // size)
    return range(axis[0] // size, axis[-1] // size + 1)


def spread(scales: torch.Tensor, dim: int, axis: range, size: int) -> torch.Tensor:
    """Scales of the blocks `blocks_of(axis, size)` along `dim`, one an index of `axis`, or one for all."""
    import torch

    blocks = blocks_of(axis, size)
    if len(blocks) == 1:
        return scales
    which = torch.tensor([(at // size - blocks.start) // blocks.step for at in axis], device=scales.device)
    return scales.index_select(dim % scales.dim(), which)

"""numpy's own copy, in tiles that stay in the cache: always there."""

from __future__ import annotations

from itertools import product

from ...graph.boxes import Dims
from .base import Kernel, Strided, check

TILE_NUMEL = 128  # along each of the two axes that a transpose runs along


class Plain(Kernel):
    """Copies by numpy. It runs along one axis at a time, so both sides of a transpose are cut into tiles."""

    name = "numpy"
    rank = 90

    def is_available(self) -> bool:
        return True

    def copy(self, dims: Dims, itemsize: int, target: Strided, source: Strided) -> None:
        check(dims, itemsize, target, source)
        into, values = target.array(dims, itemsize), source.array(dims, itemsize)
        axes = {_nearest(dims, target.strides), _nearest(dims, source.strides)}
        if len(axes) < 2:
            into[...] = values
            return
        steps = [
            [slice(at, at + TILE_NUMEL) for at in range(0, size, TILE_NUMEL)] if axis in axes else [slice(None)]
            for axis, size in enumerate(dims)
        ]
        for tile in product(*steps):
            into[tile] = values[tile]


def _nearest(dims: Dims, strides: Dims) -> int:
    """The axis along which elements lie closest together."""
    steps = [(abs(stride), axis) for axis, (size, stride) in enumerate(zip(dims, strides, strict=True)) if size > 1]
    return min(steps, default=(0, 0))[1]


KERNEL = Plain()

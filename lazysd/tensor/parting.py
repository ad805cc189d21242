"""Methods that pick parts of a tensor along one axis. torch's signatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from ..arguments import as_int, shown
from ..graph.boxes import full_box
from ..graph.node import Node
from ..graph.rewrite import slice_
from .arguments import as_axis, as_ints


class Parting(Node):
    """Parts along an axis. Nothing here reads, and every result is lazy; materialising one reads its own bytes."""

    __slots__ = ()

    def select(self, dim: int, index: int) -> Self:
        """One index of one axis, which goes.

        Args:
            dim: the axis.
            index: which one, counted from either end.

        Returns:
            A lazy tensor with one axis less.

        Raises:
            IndexError: no such axis or index. TypeError: no ints.
        """
        axis, at = as_axis(dim, self.ndim), as_int("index", index)
        size = self.dims[axis]
        if not -size <= at < size:
            raise IndexError(f"index {shown(at)} is out of bounds for axis {axis} of size {size}")
        return self._part(axis, range(at % size, at % size + 1), drop=True)

    def narrow(self, dim: int, start: int, length: int) -> Self:
        """A stretch of one axis.

        >>> import torch, lazysd
        >>> lazysd.from_torch(torch.arange(5)).narrow(0, 1, 3).materialize()
        tensor([1, 2, 3])

        Args:
            dim: the axis.
            start: its first index, counted from either end.
            length: how many.

        Returns:
            A lazy tensor; the axis has size `length`.

        Raises:
            IndexError: no such axis, or the stretch leaves it. TypeError: no ints.
        """
        axis, first, count = as_axis(dim, self.ndim), as_int("start", start), as_int("length", length)
        size = self.dims[axis]
        begin = first + size if first < 0 else first
        if begin < 0 or count < 0 or begin + count > size:
            raise IndexError(f"narrow({shown(first)}, {shown(count)}) leaves axis {axis} of size {size}")
        return self._part(axis, range(begin, begin + count))

    def split(self, split_size: int | Sequence[int], dim: int = 0) -> tuple[Self, ...]:
        """Cut one axis into parts.

        Args:
            split_size: the size of each part but the last, which may be smaller; or a list of all sizes.
            dim: the axis.

        Returns:
            Lazy tensors; together they hold every element.

        Raises:
            IndexError: no such axis. ValueError: sizes that do not add up, or are negative. TypeError: no ints.
        """
        axis = as_axis(dim, self.ndim)
        size = self.dims[axis]
        if hasattr(split_size, "__index__"):
            step = as_int("split_size", split_size)
            if step < 0 or (not step and size):
                raise ValueError(f"split needs a positive size, got {shown(step)}")
            sections = [min(step, size - at) for at in range(0, size, step or 1)] or [0]
        else:
            sections = list(as_ints("split_size", (), {"split_size": split_size}))
        if sum(sections) != size or any(section < 0 for section in sections):
            raise ValueError(f"split sizes {shown(sections)} add up to {shown(sum(sections))}, axis {axis} has {size}")
        parts, at = [], 0
        for length in sections:
            parts.append(self._part(axis, range(at, at + length)))
            at += length
        return tuple(parts)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Self, ...]:
        """Cut one axis into equal parts, the last of which may be smaller, or fewer parts where it does not come out.

        Args:
            chunks: how many, at most; an empty axis gives just as many empty parts.
            dim: the axis.

        Returns:
            Lazy tensors; together they hold every element.

        Raises:
            IndexError: no such axis. ValueError: less than one chunk. TypeError: no ints.
        """
        axis, count = as_axis(dim, self.ndim), as_int("chunks", chunks)
        if count < 1:
            raise ValueError(f"chunk needs a positive number of chunks, got {shown(count)}")
        size = self.dims[axis]
        return self.split(-(-size // count), axis) if size else (self,) * count

    def unbind(self, dim: int = 0) -> tuple[Self, ...]:
        """Every index of one axis by itself.

        Args:
            dim: the axis, which goes.

        Returns:
            As many lazy tensors as the axis is long.

        Raises:
            IndexError: no such axis. TypeError: no int.
        """
        axis = as_axis(dim, self.ndim)
        return tuple(self._part(axis, range(at, at + 1), drop=True) for at in range(self.dims[axis]))

    def _part(self, axis: int, wanted: range, drop: bool = False) -> Self:
        box: Any = full_box(self.dims)
        return slice_(self, (*box[:axis], wanted, *box[axis + 1 :]), (axis,) if drop else ())

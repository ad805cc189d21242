"""Methods that say under which shape, and in which order of axes, the same elements are seen. torch's signatures."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Self

from ..arguments import shown
from ..graph.ops import Permute
from ..graph.rewrite import build, reshape
from .arguments import as_axes, as_axis, as_ints
from .reading import Reading


class Shaping(Reading):
    """Shape and axis order. Nothing here reads, and every result is lazy."""

    __slots__ = ()

    def permute(self, *dims: int | Sequence[int], **named: Sequence[int]) -> Self:
        """Put the axes into another order.

        >>> import torch, lazysd
        >>> lazysd.from_torch(torch.zeros(2, 3, 5)).permute(2, 0, -2).shape
        torch.Size([5, 2, 3])

        Args:
            dims: for each axis of the result, the axis it was; as numbers, as one sequence, or as `dims=`.

        Returns:
            A lazy tensor of shape (shape[dims[0]], shape[dims[1]], …).

        Raises:
            IndexError: no such axis. ValueError: not every axis is named once. TypeError: no ints.
        """
        return build(Permute(tuple(as_axis(dim, self.ndim) for dim in as_ints("dims", dims, named))), (self,))

    def transpose(self, dim0: int, dim1: int) -> Self:
        """Swap two axes.

        Args:
            dim0, dim1: the axes, counted from either end.

        Returns:
            A lazy tensor with the sizes of these axes swapped.

        Raises:
            IndexError: no such axis. TypeError: no ints.
        """
        order = list(range(max(self.ndim, 1)))
        a, b = (as_axis(dim, self.ndim, scalar=True) for dim in (dim0, dim1))
        order[a], order[b] = order[b], order[a]
        return build(Permute(tuple(order)), (self,)) if self.ndim else self

    def swapaxes(self, axis0: int, axis1: int) -> Self:
        """Swap two axes: transpose under numpy's name, with its arguments, results and errors."""
        return self.transpose(axis0, axis1)

    def swapdims(self, dim0: int, dim1: int) -> Self:
        """Swap two axes: transpose under another name, with its arguments, results and errors."""
        return self.transpose(dim0, dim1)

    def movedim(self, source: int | Sequence[int], destination: int | Sequence[int]) -> Self:
        """Move axes to other places; the others keep their order.

        >>> import torch, lazysd
        >>> lazysd.from_torch(torch.zeros(2, 3, 5)).movedim(0, -1).shape
        torch.Size([3, 5, 2])

        Args:
            source: the axis, or axes, to move.
            destination: where each of them goes, counted in the result.

        Returns:
            A lazy tensor of the same elements.

        Raises:
            IndexError: no such axis. RuntimeError: an axis is named twice, or the two differ in length.
        """
        sources, targets = as_axes(source, self.ndim), as_axes(destination, self.ndim)
        if len(sources) != len(targets):
            raise RuntimeError(f"movedim got {len(sources)} axes to move and {len(targets)} places for them")
        if not self.ndim:
            return self
        place = dict(zip(targets, sources, strict=True))
        others = iter(k for k in range(self.ndim) if k not in sources)
        return build(Permute(tuple(place[k] if k in place else next(others) for k in range(self.ndim))), (self,))

    def moveaxis(self, source: int | Sequence[int], destination: int | Sequence[int]) -> Self:
        """Move axes to other places: movedim under numpy's name, with its arguments, results and errors."""
        return self.movedim(source, destination)

    def t(self) -> Self:
        """Transpose a matrix; vectors and scalars stay as they are. RuntimeError for more than two axes."""
        if self.ndim > 2:
            raise RuntimeError(f"t() expects at most 2 axes, got {self.ndim}; use transpose or mT")
        return self if self.ndim < 2 else self.transpose(0, 1)

    @property
    def T(self) -> Self:
        """The tensor with all axes in reverse order, lazy."""
        return build(Permute(tuple(reversed(range(self.ndim)))), (self,))

    @property
    def mT(self) -> Self:
        """The tensor with its last two axes swapped, lazy. RuntimeError where there are fewer than two."""
        if self.ndim < 2:
            raise RuntimeError(f"mT needs at least 2 axes, got {self.ndim}")
        return self.transpose(-2, -1)

    @property
    def H(self) -> Self:
        """A real matrix transposed, lazy. RuntimeError where there are not two axes; complex ones have to be read."""
        if self.ndim not in (0, 2):
            raise RuntimeError(f"H is for matrices, and this tensor has {self.ndim} axes; use mH or T")
        return self._real("H").T

    @property
    def mH(self) -> Self:
        """A real tensor with its last two axes swapped, lazy; complex ones have to be read. RuntimeError as mT."""
        return self._real("mH").mT

    def _real(self, name: str) -> Self:
        if self.code == "C64":
            raise AttributeError(
                f"{name} of a complex tensor is conjugated, so it has to be read: materialize().{name}"
            )
        return self

    def reshape(self, *shape: int | Sequence[int], **named: Sequence[int]) -> Self:
        """See the same elements, in row-major order, under another shape.

        >>> import torch, lazysd
        >>> lazysd.from_torch(torch.zeros(4, 6)).reshape(3, -1).shape
        torch.Size([3, 8])

        Args:
            shape: the sizes, one of which may be -1; as numbers, as one sequence, or as `shape=`.

        Returns:
            A lazy tensor of that shape.

        Raises:
            ValueError: another number of elements, or a size that cannot be told. TypeError: no ints.
        """
        return reshape(self, as_ints("shape", shape, named))

    def view(self, *size: Any, **named: Any) -> Any:
        """See the same elements under another shape; with a dtype, the same bits, read, as another type.

        A lazy tensor has no strides, so that any shape of as many elements will do, also behind permute.

        Args:
            size: as for reshape; or one torch.dtype.

        Returns:
            A lazy tensor of that shape; for a dtype a torch.Tensor.

        Raises:
            As reshape.
        """
        asked: Any = size[0] if len(size) == 1 else named.get("dtype")
        if type(asked).__name__ == "dtype" and not isinstance(asked, (int, Sequence)):
            return self.materialize().view(asked)
        return reshape(self, as_ints("size", size, named))

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Self:
        """Join neighbouring axes into one.

        Args:
            start_dim, end_dim: the first and the last of them.

        Returns:
            A lazy tensor; of a 0-d one, a vector of one element.

        Raises:
            IndexError: no such axis. RuntimeError: the first comes behind the last.
        """
        first, last = (as_axis(dim, self.ndim, scalar=True) for dim in (start_dim, end_dim))
        if first > last:
            raise RuntimeError(f"flatten: start_dim {first} comes behind end_dim {last}")
        return reshape(self, (*self.dims[:first], prod(self.dims[first : last + 1]), *self.dims[last + 1 :]))

    def unflatten(self, dim: int, sizes: Sequence[int]) -> Self:
        """Cut one axis into several, row-major.

        >>> import torch, lazysd
        >>> lazysd.from_torch(torch.zeros(6, 2)).unflatten(0, (2, -1)).shape
        torch.Size([2, 3, 2])

        Args:
            dim: the axis.
            sizes: what it becomes; one size may be -1.

        Returns:
            A lazy tensor.

        Raises:
            IndexError: no such axis. ValueError: the sizes do not multiply to the axis. TypeError: no ints.
        """
        axis = as_axis(dim, self.ndim)
        if hasattr(sizes, "__index__"):
            raise TypeError(f"sizes has to be ints, got {type(sizes).__name__}")
        asked = as_ints("sizes", (), {"sizes": sizes})
        size, wanted = self.dims[axis], list(asked)
        if wanted.count(-1) == 1 and (known := -prod(wanted)) > 0 and size % known == 0:
            wanted[wanted.index(-1)] = size // known
        if not wanted or any(part < 0 for part in wanted) or prod(wanted) != size:
            raise ValueError(f"cannot unflatten axis {axis} of size {size} into {shown(asked)}")
        return reshape(self, (*self.dims[:axis], *wanted, *self.dims[axis + 1 :]))

    def unsqueeze(self, dim: int) -> Self:
        """Add an axis of size 1.

        Args:
            dim: where it stands in the result.

        Returns:
            A lazy tensor with one axis more.

        Raises:
            IndexError: no such place. TypeError: no int.
        """
        axis = as_axis(dim, self.ndim + 1)
        return reshape(self, (*self.dims[:axis], 1, *self.dims[axis:]))

    def squeeze(self, dim: int | Sequence[int] | None = None) -> Self:
        """Drop axes of size 1.

        Args:
            dim: the axis, or axes, to drop if their size is 1; None means all of them.

        Returns:
            A lazy tensor.

        Raises:
            IndexError: no such axis. RuntimeError: an axis is named twice.
        """
        axes = range(self.ndim) if dim is None else as_axes(dim, self.ndim)
        return reshape(self, [size for k, size in enumerate(self.dims) if size != 1 or k not in axes])

"""Node: an immutable vertex of a graph. It knows its shape, its dtype, and the op and inputs that produce it."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Self

from .. import dtypes
from ..sizes import format_nbytes
from ..stores.strict_json import printable
from .boxes import Dims

if TYPE_CHECKING:
    from .base import Op

NODE_NBYTES = 400  # of memory that a node takes with its op, box and key, as benchmarks/budget.py measures it
MAX_PICKLED_DEPTH = 100  # of a graph that is pickled node by node, which keeps what several tensors share


class Node:
    """An op over inputs, with the shape and dtype of the result. Ops, rewrites, plans and the mover see nothing more.

    What users hold is a subclass (tensor.lazy.LazyTensor). Graphs grow by `like`, so that every node made of such
    nodes is of their class, and the graph needs to know none of them.
    """

    __slots__ = ("__weakref__", "code", "dims", "inputs", "op")

    op: Op
    inputs: tuple[Self, ...]
    dims: Dims  # the shape, as plain ints
    code: str  # the safetensors dtype code

    def __init__(self, op: Op, inputs: tuple[Self, ...], dims: Dims, code: str):
        self.op, self.inputs, self.dims, self.code = op, inputs, dims, code

    def like(self, op: Op, inputs: tuple[Self, ...], dims: Dims, code: str) -> Self:
        """Another node of the same class: a result, a constant, a part."""
        return type(self)(op, inputs, dims, code)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes once materialised."""
        return prod(self.dims) * dtypes.itemsize(self.code)

    @property
    def itemsize(self) -> int:
        """Bytes an element takes."""
        return dtypes.itemsize(self.code)

    def numel(self) -> int:
        """Number of elements."""
        return prod(self.dims)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # immutable, so a copy would be the same node

    def __reduce__(self) -> Any:
        from . import spec, walk

        if walk.is_deeper(self, MAX_PICKLED_DEPTH):  # pickle recurses over inputs
            return spec.rebuild, (spec.flatten(self),)
        return type(self), (self.op, self.inputs, self.dims, self.code)

    def __repr__(self) -> str:
        label = dtypes.DTYPES[self.code].label
        shown = self
        while shown.op.is_view:  # what is permuted or folded says more than how
            shown = shown.inputs[0]
        shape = ", ".join(map(str, self.dims))
        what = printable(shown.op.describe(shown))  # the name of a file, for instance
        return f"{type(self).__name__}({label}[{shape}], {format_nbytes(self.nbytes)}, {what})"

"""Whether the fields of an op fit its inputs, where its shape rule takes that for granted: rewrites make no others."""

from __future__ import annotations

from .. import dtypes
from .base import Inputs, Op
from .compute import Cast
from .ops import Concat, Slice, Take


def check_fields(op: Op, inputs: Inputs) -> None:
    """Raise ValueError, with both sides named, for a box, an axis or indices that leave the input."""
    if not inputs:
        raise ValueError(f"{type(op).__name__} needs inputs, got none")
    dims = inputs[0].dims
    if isinstance(op, (Concat, Take)) and not 0 <= op.dim < len(dims):
        raise ValueError(f"axis {op.dim} is out of range for {len(dims)} axes")
    if isinstance(op, Take) and not all(0 <= at < dims[op.dim] for at in op.indices):
        raise ValueError(f"an index leaves axis {op.dim} of size {dims[op.dim]}")
    if isinstance(op, Slice):
        _check_box(op, dims)
    if isinstance(op, Cast):
        dtypes.refuse_packed(op.code)
        dtypes.refuse_packed(inputs[0].code)
    if isinstance(op, (Slice, Take, Cast)) and len(inputs) != 1:
        raise ValueError(f"{type(op).__name__} has one input, got {len(inputs)}")


def _check_box(op: Slice, dims: tuple[int, ...]) -> None:
    if len(op.box) != len(dims) or any(axis and axis[-1] >= size for axis, size in zip(op.box, dims, strict=True)):
        raise ValueError(f"the box {op.box} leaves {list(dims)}")
    if any(not 0 <= axis < len(dims) or len(op.box[axis]) != 1 for axis in op.drop) or len(set(op.drop)) < len(op.drop):
        raise ValueError(f"axes {op.drop} cannot be dropped from {[len(axis) for axis in op.box]}")

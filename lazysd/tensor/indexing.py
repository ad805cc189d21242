"""Subscripts as users write them, turned into slices, takes and reshapes. Semantics are torch's."""

from __future__ import annotations

import operator
from typing import Any

from ..arguments import kind_of
from ..graph.boxes import full_box
from ..graph.ops import Reshape, Take
from ..graph.rewrite import build, slice_
from .lazy import LazyTensor


def index(node: LazyTensor, key: Any) -> LazyTensor:
    """node[key]: ints, slices, None, Ellipsis, lists, boolean masks of one axis, and index tensors. Reads nothing.

    One axis at most takes a list, mask or tensor; torch's pointwise pairing of several is refused, because its result
    is no box of the source. Raises IndexError as torch does.
    """
    box, drop, shape, rows = list(full_box(node.dims)), [], [], None
    axis = 0  # of the node
    for item in _one_an_axis(node, key):
        if item is None:
            shape.append(1)
            continue
        size = node.dims[axis]
        if isinstance(item, slice):
            if item.step is not None and operator.index(item.step) < 1:
                raise ValueError(f"slice step must be positive, got {item.step}; materialise and flip instead")
            box[axis] = range(size)[item]
            shape.append(len(box[axis]))
        elif (number := _as_int(item)) is not None:
            if not -size <= number < size:
                raise IndexError(f"index {number} is out of bounds for axis {axis} of size {size}")
            box[axis] = range(number % size, number % size + 1)
            drop.append(axis)
        else:
            if rows is not None:
                raise IndexError("only one axis may take a list, mask or tensor; index twice, or materialise first")
            numbers, extent = _as_indices(item, size, axis)
            rows = (axis - len(drop), numbers)
            shape.extend(extent)
        axis += 1
    result = slice_(node, tuple(box), tuple(drop))
    if rows is not None:
        result = build(Take(*rows), (result,))
    return build(Reshape(tuple(shape)), (result,))


def _one_an_axis(node: LazyTensor, key: Any) -> list[Any]:
    """The items of a subscript, one for each axis of the node, and None where one is added."""
    if isinstance(key, list) and not all(isinstance(item, int) or hasattr(item, "__index__") for item in key):
        raise IndexError(f"cannot index with the list {key!r}: torch takes it for a tuple; write the tuple or a tensor")
    keys = list(key) if isinstance(key, tuple) else [key]
    num_axes = sum(1 for item in keys if item is not None and item is not Ellipsis)
    if sum(item is Ellipsis for item in keys) > 1:
        raise IndexError("an index can only have one ellipsis ('...')")
    if num_axes > node.ndim:
        raise IndexError(f"too many indices ({num_axes}) for tensor of {node.ndim} axes {list(node.dims)}")
    if not any(item is Ellipsis for item in keys):
        keys.append(Ellipsis)
    at = next(k for k, item in enumerate(keys) if item is Ellipsis)
    keys[at : at + 1] = [slice(None)] * (node.ndim - num_axes)
    return keys


def _as_int(item: Any) -> int | None:
    """An integer or integer scalar of any library; None for anything else."""
    if not getattr(item, "ndim", 1) and str(item.dtype) == "torch.uint8":
        raise IndexError("torch takes a uint8 scalar for a mask; index with int(index)")
    if isinstance(item, bool) or (not getattr(item, "ndim", 1) and str(item.dtype).endswith("bool")):
        raise IndexError("True and False are not accepted as an index; use None to add an axis")
    if getattr(item, "ndim", 0) or isinstance(item, (list, tuple, range)):
        return None
    try:
        return operator.index(item)
    except TypeError:
        raise IndexError(f"cannot index a tensor with {kind_of(item)}") from None


def _as_indices(item: Any, size: int, axis: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Row numbers, and the shape of the index."""
    import numpy as np

    if isinstance(item, LazyTensor):
        item = item.materialize()
    if getattr(item, "ndim", 0) and str(getattr(item, "dtype", "")) in ("torch.uint8", "uint8"):
        raise IndexError("torch takes a uint8 index for a mask; say which is meant: index.bool() or index.long()")
    try:
        array = np.asarray(item.tolist() if hasattr(item, "tolist") else list(item))
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors that are sparse or on meta
        raise IndexError(f"cannot index with {kind_of(item)}: {str(error).splitlines()[0]}") from error
    if array.size == 0 and array.dtype != bool:
        array = array.astype(np.int64)
    if array.dtype == bool:
        if array.shape != (size,):
            raise IndexError(
                f"a mask of shape {list(array.shape)} does not fit axis {axis} of size {size}; "
                "for a mask of several axes, materialise first"
            )
        numbers = tuple(int(k) for k in np.flatnonzero(array))
        return numbers, (len(numbers),)
    if array.dtype.kind not in "iu":
        raise IndexError(f"cannot index with values of type {array.dtype}")
    flat = [int(k) for k in array.ravel()]
    for number in flat:
        if not -size <= number < size:
            raise IndexError(f"index {number} is out of bounds for axis {axis} of size {size}")
    return tuple(number % size for number in flat), tuple(array.shape)

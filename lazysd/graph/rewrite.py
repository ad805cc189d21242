"""Nodes are built here, so that simplifications apply as the graph grows: one small function a rule.

The rules keep graphs flat (no chains of slices or permutes) and make inverses meet: a slice of a stack is the input it
picks, a stack of all slices of a tensor is that tensor. Converting A -> B -> A therefore ends in the leaves of A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise, permutations, product
from math import prod
from typing import Any, TypeVar

from .. import dtypes
from .base import Op
from .boxes import Box, Dims, clip, full_box
from .compute import Agree, Cast
from .node import Node
from .ops import Concat, Permute, Reshape, Slice, Stack, Take

N = TypeVar("N", bound=Node)


def build(op: Op, inputs: Iterable[N]) -> N:
    """The node for `op` over `inputs`, simplified. Raises ValueError where the shapes do not fit."""
    inputs = tuple(inputs)
    dims, code = op.infer(inputs)
    rule = RULES.get(type(op))
    simpler = rule(op, inputs, dims) if rule else None
    return simpler if simpler is not None else inputs[0].like(op, inputs, dims, code)


def slice_(node: N, box: Box, drop: tuple[int, ...] = ()) -> N:
    """A box of a node, pushed down past slices, permutes, stacks and concats as far as it goes."""
    outer: tuple[int, ...] | None = None  # a permute that the slice has passed on its way down
    while True:
        op = node.op
        if isinstance(op, Slice):
            box, drop = _compose(op, box, drop)
            node = node.inputs[0]
        elif isinstance(op, Permute):
            # kept axes, named by their axis below the permute, in the order in which they come out above it
            kept = [op.dims[k] for k in range(len(box)) if k not in drop]
            if outer is not None:
                kept = [kept[k] for k in outer]
            order = sorted(range(len(box)), key=op.dims.__getitem__)
            box = tuple(box[k] for k in order)
            drop = tuple(sorted(op.dims[k] for k in drop))
            below = sorted(kept)
            outer = tuple(below.index(axis) for axis in kept)
            node = node.inputs[0]
        elif isinstance(op, Stack) and all(k in drop for k in range(len(op.lead))):
            n, flat = len(op.lead), 0
            for size, axis in zip(op.lead, box, strict=False):
                flat = flat * size + axis[0]
            box, drop, node = box[n:], tuple(k - n for k in drop if k >= n), node.inputs[flat]
        elif isinstance(op, Stack) and box[: len(op.lead)] != full_box(op.lead) and all(box[: len(op.lead)]):
            node = _narrow_stack(node, op, box)
            n = len(op.lead)
            box = full_box(node.dims[:n]) + box[n:]
        elif isinstance(op, Concat) and (only := _within_one(node, op.dim, box)) is not None:
            node, box = only
        else:
            break
    whole = not drop and box == full_box(node.dims)
    result = node if whole else node.like(op := Slice(box, drop), (node,), *op.infer((node,)))
    return result if outer is None or outer == tuple(range(len(outer))) else build(Permute(outer), (result,))


def _compose(op: Slice, box: Box, drop: tuple[int, ...]) -> tuple[Box, tuple[int, ...]]:
    """A slice of a slice is one slice of the input."""
    kept = [k for k in range(len(op.box)) if k not in op.drop]
    inner = list(op.box)
    for k, axis in zip(kept, box, strict=True):
        inner[k] = op.box[k][axis.start : axis.stop : axis.step]
    return tuple(inner), tuple(sorted((*op.drop, *(kept[k] for k in drop))))


def _narrow_stack(node: N, op: Stack, box: Box) -> N:
    """A slice along stacked axes keeps only the inputs it needs."""
    picked = []
    for index in product(*box[: len(op.lead)]):
        flat = 0
        for size, at in zip(op.lead, index, strict=True):
            flat = flat * size + at
        picked.append(node.inputs[flat])
    lead = tuple(len(axis) for axis in box[: len(op.lead)])
    return node.like(Stack(lead), tuple(picked), lead + node.dims[len(op.lead) :], node.code)


def _within_one(node: N, dim: int, box: Box) -> tuple[N, Box] | None:
    """A slice that stays inside one input of a concat is a slice of that input."""
    axis, low = box[dim], 0
    if not axis:
        return None
    for part in node.inputs:
        high = low + part.dims[dim]
        if low <= axis[0] < high:
            return (part, (*box[:dim], clip(axis, low, high)[1], *box[dim + 1 :])) if axis[-1] < high else None
        low = high
    return None


def _slice(op: Slice, inputs: tuple[N, ...], dims: Dims) -> N | None:
    return slice_(inputs[0], op.box, op.drop)


def _stack(op: Stack, inputs: tuple[N, ...], dims: Dims) -> N | None:
    """A stack of x[0], x[1], … to the end is x; a stack of equal permutes is a permute of the stack."""
    first = inputs[0].op
    n = len(op.lead)
    if isinstance(first, Permute) and all(node.op == first for node in inputs):
        below = build(op, (node.inputs[0] for node in inputs))
        return build(Permute((*range(n), *(n + axis for axis in first.dims))), (below,))
    if not isinstance(first, Slice) or len(first.drop) != n:
        return None
    source = inputs[0].inputs[0]
    rest = [k for k in range(source.ndim) if k not in first.drop]
    if any(first.box[k] != range(source.dims[k]) for k in rest):
        return None
    for order in permutations(first.drop):  # which dropped axis each new axis stands for
        if tuple(source.dims[k] for k in order) == op.lead and _picks_all(inputs, source, op.lead, order):
            return build(Permute((*order, *rest)), (source,))
    return None


def _picks_all(inputs: tuple[N, ...], source: N, lead: Dims, order: tuple[int, ...]) -> bool:
    """Whether the inputs are the slices of `source` at every index of the axes `order`, row-major."""
    first = inputs[0].op
    assert isinstance(first, Slice)
    for index, node in zip(product(*map(range, lead)), inputs, strict=True):
        here = node.op
        if not isinstance(here, Slice) or node.inputs[0] is not source or here.drop != first.drop:
            return False
        if any(here.box[axis][0] != at for axis, at in zip(order, index, strict=True)):
            return False
        if any(a != b for k, (a, b) in enumerate(zip(here.box, first.box, strict=True)) if k not in order):
            return False
    return True


def _concat(op: Concat, inputs: tuple[N, ...], dims: Dims) -> N | None:
    """One input is itself; nested concats are flat; slices that fill a tensor are that tensor; permutes go outside."""
    dim = op.dim
    flat: list[N] = []
    for node in inputs:
        flat.extend(node.inputs if isinstance(node.op, Concat) and node.op.dim == dim else (node,))
    if len(flat) == 1:
        return flat[0]
    first = flat[0].op
    if isinstance(first, Permute) and all(node.op == first for node in flat):
        return build(Permute(first.dims), (build(Concat(first.dims[dim]), (node.inputs[0] for node in flat)),))
    if isinstance(first, Slice) and not first.drop:
        source, at = flat[0].inputs[0], 0
        for node in flat:
            here = node.op
            if not isinstance(here, Slice) or here.drop or node.inputs[0] is not source:
                break
            if here.box[dim] != range(at, at + node.dims[dim]) or any(
                axis != range(source.dims[k]) for k, axis in enumerate(here.box) if k != dim
            ):
                break
            at += node.dims[dim]
        else:
            if at == source.dims[dim]:
                return source
    if len(flat) != len(inputs):
        return flat[0].like(op, tuple(flat), dims, flat[0].code)
    return None


def _permute(op: Permute, inputs: tuple[N, ...], dims: Dims) -> N | None:
    """Permutes compose; the identity vanishes."""
    (node,) = inputs
    if op.dims == tuple(range(node.ndim)):
        return node
    if isinstance(node.op, Permute):
        return build(Permute(tuple(node.op.dims[k] for k in op.dims)), node.inputs)
    return None


def _reshape(op: Reshape, inputs: tuple[N, ...], dims: Dims) -> N | None:
    """Only the last of several reshapes counts; the identity vanishes."""
    (node,) = inputs
    if op.shape == node.dims:
        return node
    if isinstance(node.op, Reshape):
        return build(op, node.inputs)
    return None


def _take(op: Take, inputs: tuple[N, ...], dims: Dims) -> N | None:
    """Evenly rising indices are a slice."""
    (node,) = inputs
    at = op.indices
    step = at[1] - at[0] if len(at) > 1 else 1
    if at and step > 0 and all(b - a == step for a, b in pairwise(at)):
        box = full_box(node.dims)
        return slice_(node, (*box[: op.dim], range(at[0], at[-1] + 1, step), *box[op.dim + 1 :]))
    return None


def _cast(op: Cast, inputs: tuple[N, ...], dims: Dims) -> N | None:
    return inputs[0] if inputs[0].code == op.code else None


def _agree(op: Agree, inputs: tuple[N, ...], dims: Dims) -> N | None:
    """A tensor agrees with itself."""
    return inputs[0] if all(node is inputs[0] for node in inputs) else None


RULES: dict[type[Op], Callable[..., Any]] = {
    Slice: _slice,
    Stack: _stack,
    Concat: _concat,
    Permute: _permute,
    Reshape: _reshape,
    Take: _take,
    Cast: _cast,
    Agree: _agree,
}


def stack(tensors: tuple[N, ...], dim: int = 0) -> N:
    """Tensors of one shape along a new axis `dim`."""
    result = build(Stack((len(tensors),)), tensors)
    if not -result.ndim <= dim < result.ndim:
        raise IndexError(f"stack: axis {dim} is out of range for {result.ndim} axes")
    order = list(range(1, result.ndim))
    order.insert(dim % result.ndim, 0)
    return build(Permute(tuple(order)), (result,))


def concat(tensors: tuple[N, ...], dim: int = 0) -> N:
    """Tensors end to end along axis `dim`."""
    ndim = tensors[0].ndim if tensors else 0
    if tensors and not -ndim <= dim < ndim:
        raise IndexError(f"concat: axis {dim} is out of range for {ndim} axes")
    return build(Concat(dim % max(ndim, 1)), tensors)


def cast(node: N, code: str) -> N:
    """The node in another dtype. Raises UnsupportedCheckpointError for values packed into bytes."""
    if code != node.code:
        dtypes.refuse_packed(node.code)
        dtypes.refuse_packed(code)
    return build(Cast(code, node.code), (node,))


def reshape(node: N, shape: Iterable[int]) -> N:
    """The same elements under another shape; one size may be -1."""
    sizes = tuple(shape)
    if sizes.count(-1) == 1:
        known = prod(size for size in sizes if size != -1)
        if not known or node.numel() % known:
            raise ValueError(f"cannot reshape {list(node.dims)} to {list(sizes)}")
        sizes = tuple(node.numel() // known if size == -1 else size for size in sizes)
    if any(size < 0 for size in sizes):
        raise ValueError(f"cannot reshape {list(node.dims)} to {list(sizes)}")
    return build(Reshape(sizes), (node,))

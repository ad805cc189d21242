"""Nodes of one side of an axis pattern to nodes of the other: stack, unfold, permute, fold, pick."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import prod

from ..graph.ops import Concat, Permute, Reshape, Slice, Stack
from ..graph.rewrite import build
from ..tensor.lazy import LazyTensor
from .pattern import Side

MAX_KEYS = 1_000_000  # tensors that one tensor may be cut into: more is a claim of a header, not a checkpoint


class UnknownSizeError(ValueError):
    """A folded axis of which two sizes are not known."""


def rearrange(
    inputs: tuple[LazyTensor, ...], source: Side, target: Side, sizes: Mapping[str, int]
) -> tuple[list[LazyTensor], dict[str, int]]:
    """Nodes of one side (row-major over its key axes) to nodes of the other side, and the sizes of all axes.

    `sizes` holds the key axes of `source` and whatever else is known by name. At most one size of each folded axis is
    computed from the tensor's shape. Raises ValueError with both sides where the shapes do not fit.
    """
    dims = inputs[0].dims
    if source.parts or target.parts:
        return _parts(inputs, source, target, sizes)
    source, target = source.of_rank(len(dims)), target.of_rank(_rank_there(source, target, len(dims)))
    known = solve(source, dims, sizes)
    inputs = _in_order(inputs, source.alone, known, back=False)
    lead = tuple(known[axis] for axis in source.keys)
    node = build(Stack(lead), inputs) if source.keys else inputs[0]
    here = tuple(axis for axis in source.axes if axis != "1")
    there = tuple(axis for axis in target.axes if axis != "1")
    node = build(Reshape(tuple(known[axis] for axis in here)), (node,))
    node = build(Permute(tuple(map(here.index, there))), (node,))
    n = len(target.keys)
    shape = tuple(known[axis] for axis in target.keys) + tuple(
        prod(known[axis] for axis in group) for group in target.groups
    )
    node = build(Reshape(shape), (node,))
    if not n:
        return [node], known
    if prod(shape[:n]) > MAX_KEYS:
        raise ValueError(f"{list(dims)} would become {prod(shape[:n]):,} tensors; at most {MAX_KEYS:,} are made")
    whole = tuple(range(size) for size in shape[n:])
    picks = product(*(range(size) for size in shape[:n]))
    drop = tuple(range(n))
    made = tuple(build(Slice((*(range(k, k + 1) for k in pick), *whole), drop), (node,)) for pick in picks)
    return list(_in_order(made, target.alone, known, back=True)), known


def _in_order(
    nodes: tuple[LazyTensor, ...], sides: tuple[Side, ...], known: Mapping[str, int], back: bool
) -> tuple[LazyTensor, ...]:
    """The tensors of words that fold an axis in orders of their own: in the first one's order, or `back` again."""
    if not sides:
        return nodes
    moved = []
    for node, side in zip(nodes, sides, strict=True):
        here, there = (sides[0], side) if back else (side, sides[0])
        moved.append(_moved(node, here.groups, there.groups, known, fold=True))
    return tuple(moved)


def _rank_there(source: Side, target: Side, rank: int) -> int:
    """How many axes a tensor of the other side has: `...` stands for the same number on both."""
    return len(target.groups) + rank - len(source.groups)


def solve(side: Side, dims: tuple[int, ...], sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of all axes of a side, from a tensor's shape and what is known. Raises ValueError where they disagree."""
    known = {**sizes, "1": 1, **{axis: int(axis) for axis in side.axes if axis.isdecimal()}}
    side = side.of_rank(len(dims))
    if len(dims) != len(side.groups):
        raise ValueError(f"pattern '{side}' has {len(side.groups)} tensor axes, the tensor is {list(dims)}")
    for group, size in zip(side.groups, dims, strict=True):
        unknown = [axis for axis in group if axis not in known or len(group) == 1]
        product_ = prod(known[axis] for axis in group if axis not in unknown)
        if len(unknown) > 1:
            raise UnknownSizeError(
                f"axis ({' '.join(group)}) of size {size}: the sizes of {unknown} are not known; config.json, or "
                "config=, can state them"
            )
        if product_ * (size // product_ if unknown and product_ else 1) != size:
            shown = " x ".join(f"{axis}={known.get(axis, '?')}" for axis in group)
            raise ValueError(f"axis ({' '.join(group)}) has size {size}, which is not {shown}")
        if unknown:
            (axis,) = unknown
            if known.get(axis, size // product_) != size // product_:
                raise ValueError(f"axis {axis} has size {size // product_}, expected {known[axis]}")
            known[axis] = size // product_
    return known


def _parts(
    inputs: tuple[LazyTensor, ...], source: Side, target: Side, sizes: Mapping[str, int]
) -> tuple[list[LazyTensor], dict[str, int]]:
    """Tensors of unequal parts end to end, or cut apart again: what is folded before the parts stays before them."""
    axis = source.parts or target.parts
    assert axis is not None
    names = axis.split("+")
    apart, joined = (source, target) if source.keys else (target, source)
    (key,) = apart.keys
    if source.keys:
        known: dict[str, int] = dict(sizes)
        pieces = []
        for name, node in zip(names, inputs, strict=True):
            known |= solve(_with_part(source, axis, name), node.dims, known)
            piece = _with_part(source, axis, name)
            pieces.append(_moved(node, piece.groups, _with_part(target, axis, name).groups, known, fold=False))
        whole = _unfolded(joined).index(axis)
        node = build(Concat(whole), pieces)
        total = sum(known[name] for name in names)
        shape = tuple(prod(known.get(a, total) if a != axis else total for a in group) for group in joined.groups)
        return [build(Reshape(shape), (node,))], known | {key: len(names)}
    unknown = [name for name in names if name not in sizes]
    if unknown:
        raise ValueError(f"the sizes of {unknown} are not known; config.json, or config=, can state them")
    total = sum(sizes[name] for name in names)
    known = solve(source, inputs[0].dims, {**sizes, axis: total})
    order = _unfolded(joined)
    node = build(Reshape(tuple(known[a] for a in order)), inputs)
    result, start = [], 0
    for name in names:
        box = tuple(range(start, start + known[name]) if a == axis else range(known[a]) for a in order)
        start += known[name]
        part = build(Slice(box), (node,))
        here = tuple((name if a == axis else a,) for a in order)
        result.append(_moved(part, here, _with_part(target, axis, name).groups, known, fold=True))
    return result, known | {key: len(names)}


def _unfolded(side: Side) -> tuple[str, ...]:
    return tuple(axis for group in side.groups for axis in group)


def _with_part(side: Side, axis: str, name: str) -> Side:
    """The side of one tensor among several of unequal parts."""
    return Side((), tuple(tuple(name if a == axis else a for a in group) for group in side.groups))


def _moved(
    node: LazyTensor,
    here: tuple[tuple[str, ...], ...],
    there: tuple[tuple[str, ...], ...],
    known: Mapping[str, int],
    fold: bool,
) -> LazyTensor:
    """Unfolded, permuted, and folded again where asked."""
    before = tuple(axis for group in here for axis in group)
    after = tuple(axis for group in there for axis in group)
    node = build(Reshape(tuple(known[axis] for axis in before)), (node,))
    node = build(Permute(tuple(map(before.index, after))), (node,))
    return build(Reshape(tuple(prod(known[a] for a in group) for group in there)), (node,)) if fold else node

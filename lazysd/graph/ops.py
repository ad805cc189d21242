"""Structural ops: they move elements and never change them. One frozen class owns one op.

Each op says what shape it makes of its inputs (`infer`) and how it passes a destination on to them (`route`): given
"fill this strided part of the destination with this box of my result", it answers with the same request on its inputs.
Following the requests down to the leaves turns any graph of these ops into a flat list of strided copies.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, product
from math import prod
from typing import TYPE_CHECKING, ClassVar

from .base import Inputs, Piece, Structural
from .boxes import Box, Dims, clip, flat_ranges, fold_boxes, reshape_groups

if TYPE_CHECKING:
    from .node import Node


@dataclass(frozen=True, slots=True)
class Stack(Structural):
    """Inputs of one shape, laid out over new leading axes `lead` (row-major)."""

    lead: Dims

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        if len(inputs) != prod(self.lead) or not inputs:
            raise ValueError(f"stack over {self.lead} needs {prod(self.lead)} tensors, got {len(inputs)}")
        first = inputs[0]
        for number, other in enumerate(inputs):
            if other.dims != first.dims or other.code != first.code:
                raise ValueError(
                    f"cannot stack: tensor 0 is {first.code}{list(first.dims)}, "
                    f"tensor {number} is {other.code}{list(other.dims)}"
                )
        return self.lead + first.dims, first.code

    def route(self, piece: Piece) -> Iterator[Piece]:
        node, box, offset, strides = piece
        n = len(self.lead)
        inner, inner_strides, inputs = box[n:], strides[n:], node.inputs
        if n == 1:  # the common case, kept quick
            stride = strides[0]
            for at, index in enumerate(box[0]):
                yield Piece(inputs[index], inner, offset + at * stride, inner_strides)
            return
        for positions in product(*(range(len(axis)) for axis in box[:n])):
            flat, at = 0, offset
            for k, position in enumerate(positions):
                flat = flat * self.lead[k] + box[k][position]
                at += position * strides[k]
            yield Piece(inputs[flat], inner, at, inner_strides)

    def describe(self, node: Node) -> str:
        return f"stack of {self.lead[0]}"


@dataclass(frozen=True, slots=True)
class Concat(Structural):
    """Inputs end to end along an existing axis."""

    dim: int

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        if not inputs:
            raise ValueError("concat needs at least one tensor")
        first, dim = inputs[0], self.dim
        for number, other in enumerate(inputs):
            same = other.ndim == first.ndim and all(
                a == b for k, (a, b) in enumerate(zip(other.dims, first.dims, strict=True)) if k != dim
            )
            if not same or other.code != first.code:
                raise ValueError(
                    f"cannot concat along axis {dim}: tensor 0 is {first.code}{list(first.dims)}, "
                    f"tensor {number} is {other.code}{list(other.dims)}"
                )
        total = sum(other.dims[dim] for other in inputs)
        return (*first.dims[:dim], total, *first.dims[dim + 1 :]), first.code

    def route(self, piece: Piece) -> Iterator[Piece]:
        node, box, offset, strides = piece
        dim = self.dim
        axis = box[dim]
        ends = list(accumulate(part.dims[dim] for part in node.inputs))
        for number in range(bisect_right(ends, axis[0]), len(ends)):
            low = ends[number] - node.inputs[number].dims[dim]
            if low > axis[-1]:
                return
            begin, inside = clip(axis, low, ends[number])
            if inside:
                part = (*box[:dim], inside, *box[dim + 1 :])
                yield Piece(node.inputs[number], part, offset + begin * strides[dim], strides)

    def describe(self, node: Node) -> str:
        return f"concat of {len(node.inputs)} along axis {self.dim}"


@dataclass(frozen=True, slots=True)
class Slice(Structural):
    """A box of the input; the axes in `drop` (each of length 1) are removed."""

    box: Box
    drop: tuple[int, ...] = ()

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        return tuple(len(axis) for k, axis in enumerate(self.box) if k not in self.drop), inputs[0].code

    def route(self, piece: Piece) -> Iterator[Piece]:
        node, box, offset, strides = piece
        inner, inner_strides, k = [], [], 0
        for axis, indices in enumerate(self.box):
            if axis in self.drop:
                inner.append(indices)
                inner_strides.append(0)
            else:
                wanted = box[k]
                whole = wanted.step == 1 and len(wanted) == len(indices)  # shared, for there may be many pieces
                inner.append(indices if whole else indices[wanted.start : wanted.stop : wanted.step])
                inner_strides.append(strides[k])
                k += 1
        yield Piece(node.inputs[0], tuple(inner), offset, tuple(inner_strides))

    def describe(self, node: Node) -> str:
        shown = []
        for axis, indices in enumerate(self.box):
            if axis in self.drop:
                shown.append(str(indices[0]))
            elif len(indices) == node.inputs[0].dims[axis]:
                shown.append(":")
            else:
                step = f":{indices.step}" if indices.step != 1 else ""
                shown.append(f"{indices.start}:{indices.stop}{step}")
        return f"slice [{', '.join(shown)}]"


@dataclass(frozen=True, slots=True)
class Take(Structural):
    """The rows `indices` of one axis, in that order, repeats allowed."""

    dim: int
    indices: tuple[int, ...]

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        dims = inputs[0].dims
        return (*dims[: self.dim], len(self.indices), *dims[self.dim + 1 :]), inputs[0].code

    def route(self, piece: Piece) -> Iterator[Piece]:
        node, box, offset, strides = piece
        dim = self.dim
        wanted = [self.indices[k] for k in box[dim]]
        at = 0
        while at < len(wanted):  # evenly rising runs become one piece
            step = wanted[at + 1] - wanted[at] if at + 1 < len(wanted) else 1
            end = at + 1
            while step > 0 and end < len(wanted) and wanted[end] - wanted[end - 1] == step:
                end += 1
            run = range(wanted[at], wanted[end - 1] + 1, max(step, 1))
            yield Piece(node.inputs[0], (*box[:dim], run, *box[dim + 1 :]), offset + at * strides[dim], strides)
            at = end

    def describe(self, node: Node) -> str:
        return f"{len(self.indices)} rows of axis {self.dim}"


@dataclass(frozen=True, slots=True)
class Permute(Structural):
    """Axis k of the result is axis dims[k] of the input."""

    is_view: ClassVar[bool] = True
    dims: tuple[int, ...]

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        source = inputs[0].dims
        if sorted(self.dims) != list(range(len(source))):
            raise ValueError(f"permute {self.dims} does not name each of the {len(source)} axes of {list(source)} once")
        return tuple(source[axis] for axis in self.dims), inputs[0].code

    def route(self, piece: Piece) -> Iterator[Piece]:
        node, box, offset, strides = piece
        order = sorted(range(len(box)), key=self.dims.__getitem__)
        yield Piece(node.inputs[0], tuple(box[k] for k in order), offset, tuple(strides[k] for k in order))

    def describe(self, node: Node) -> str:
        return f"permute {self.dims}"


@dataclass(frozen=True, slots=True)
class Reshape(Structural):
    """The same elements in row-major order under another shape: folds and unfolds axes."""

    is_view: ClassVar[bool] = True
    shape: Dims

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        if prod(self.shape) != inputs[0].numel():
            raise ValueError(
                f"cannot reshape {list(inputs[0].dims)} to {list(self.shape)}: {inputs[0].numel()} elements"
            )
        return self.shape, inputs[0].code

    def route(self, piece: Piece) -> Iterator[Piece]:
        node, box, offset, strides = piece
        source = node.inputs[0].dims
        groups = reshape_groups(source, self.shape)
        plain = [i_end - i == 1 == j_end - j for (i, i_end), (j, j_end) in groups]
        last = next((k for k in reversed(range(len(groups))) if not plain[k]), 0)

        def parts(k: int) -> Iterator[tuple[Box, int, Dims]]:
            """Every (box, offset, strides) of the input that the box needs along one group of axes."""
            (i, i_end), (j, j_end) = groups[k]
            if plain[k]:
                yield (box[j],), 0, (strides[j],)
                return
            for flat, at, stride in flat_ranges(box[j:j_end], self.shape[j:j_end], strides[j:j_end]):
                yield from fold_boxes(flat, source[i:i_end], at, stride)

        before = [list(parts(k)) for k in range(last)]  # of the last group that is cut, parts come one by one
        behind = [next(parts(k)) for k in range(last + 1, len(groups))]
        for chosen in product(*before):
            for part in parts(last) if groups else ():
                choice = (*chosen, part, *behind)
                inner: Box = tuple(axis for axes, _, _ in choice for axis in axes)
                inner_strides: Dims = tuple(stride for _, _, axes in choice for stride in axes)
                yield Piece(node.inputs[0], inner, offset + sum(at for _, at, _ in choice), inner_strides)
        if not groups:
            yield Piece(node.inputs[0], (), offset, ())

    def describe(self, node: Node) -> str:
        return f"reshape of {list(node.inputs[0].dims)}"

"""Boxes: which elements of a tensor, as one `range` an axis. Pure integer arithmetic; no torch, no bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import product
from math import gcd, prod

Box = tuple[range, ...]
Dims = tuple[int, ...]


@lru_cache(maxsize=4096)
def full_box(dims: Dims) -> Box:
    """Every element of a tensor of shape `dims`."""
    return tuple(range(size) for size in dims)


def box_dims(box: Box) -> Dims:
    """Shape of the elements a box picks."""
    return tuple(map(len, box))


@lru_cache(maxsize=4096)
def row_major(dims: Dims) -> Dims:
    """Strides, in elements, of a contiguous tensor of shape `dims`."""
    strides, pitch = [], 1
    for size in reversed(dims):
        strides.append(pitch)
        pitch *= size
    return tuple(reversed(strides))


def is_dense(dims: Dims, strides: Dims) -> bool:
    """Whether `strides` lay `dims` out row-major without gaps (axes of length 1 do not matter)."""
    pitch = 1
    for size, stride in zip(reversed(dims), reversed(strides), strict=True):
        if size != 1:
            if stride != pitch:
                return False
            pitch *= size
    return True


def clip(axis: range, low: int, high: int) -> tuple[int, range]:
    """The part of `axis` inside [low, high), relative to `low`, and the position where that part begins in `axis`."""
    first = max(0, -((axis.start - low) // axis.step)) if axis.start < low else 0
    last = len(axis) if not axis or axis[-1] < high else max(0, -((axis.start - high) // axis.step))
    part = axis[first:last]
    return first, range(part.start - low, part.stop - low, part.step)


def tiles(box: Box, itemsize: int, limit_nbytes: int, align: int = 1) -> Iterator[Box]:
    """Cut a box into boxes of at most `limit_nbytes`, outermost axis first, in row-major order.

    Each tile is contiguous in a row-major destination. Cuts fall on multiples of `align` indices where they can.
    """
    stack = [box]
    while stack:
        part = stack.pop()
        nbytes = itemsize * prod(box_dims(part))
        axis = next((k for k, indices in enumerate(part) if len(indices) > 1), None)
        if nbytes <= limit_nbytes or axis is None:
            yield part
            continue
        size = len(part[axis])
        step = max(1, limit_nbytes // (nbytes // size))
        if align > 1 and size > align:
            step = max(align, step - step % align)
        cuts = [part[axis][start : start + step] for start in range(0, size, step)]
        if len(cuts) == 1:
            yield part
            continue
        stack.extend((*part[:axis], cut, *part[axis + 1 :]) for cut in reversed(cuts))


MAX_CORNER_AXES = 8  # beyond them, 2^axes corners a box are more than comparing boxes with each other


def covers_once(boxes: Iterable[Box], dims: Dims) -> bool:
    """Whether unit-step boxes cover every element of a tensor of shape `dims` exactly once.

    Each box adds its corners with alternating signs (the mixed difference of its indicator function). That map is
    linear and injective, so the boxes tile the tensor if and only if their corners add up to the tensor's own. Cost:
    2^axes a box, however many boxes there are; axes along which nothing is cut do not count.
    """
    boxes = list(boxes)
    if len(boxes) == 1:
        return boxes[0] == full_box(dims)
    boxes = [box for box in boxes if all(box)]
    if any(len(axis) > 1 and axis.step != 1 for box in boxes for axis in box):
        return False
    if sum(prod(box_dims(box)) for box in boxes) != prod(dims):
        return False
    spans = [tuple((axis[0], axis[-1] + 1) for axis in box) for box in boxes]
    whole = tuple((0, size) for size in dims)
    cut = [axis for axis, span in enumerate(whole) if any(box[axis] != span for box in spans)]
    spans, whole = [tuple(box[axis] for axis in cut) for box in spans], tuple(whole[axis] for axis in cut)
    return _tile_by_corners(spans, whole) if len(cut) <= MAX_CORNER_AXES else _tile_apart(spans, whole)


Span = tuple[tuple[int, int], ...]  # (first, one past the last) along each axis


def _tile_by_corners(spans: list[Span], whole: Span) -> bool:
    corners: Counter[Dims] = Counter()
    for span, weight in (*((span, 1) for span in spans), *(((whole, -1),) if spans else ())):
        for choice in product((0, 1), repeat=len(span)):
            corner = tuple(bound[side] for bound, side in zip(span, choice, strict=True))
            corners[corner] += weight * (-1) ** sum(choice)
    return not any(corners.values())


def _tile_apart(spans: list[Span], whole: Span) -> bool:
    """Whether boxes whose elements add up to the tensor's lie inside of it and do not meet."""
    if any(low < 0 or high > size for span in spans for (low, high), (_, size) in zip(span, whole, strict=True)):
        return False
    ordered = sorted(spans)
    for number, span in enumerate(ordered):
        for other in ordered[number + 1 :]:
            if other[0][0] >= span[0][1]:
                break
            if all(low < end and start < high for (low, high), (start, end) in zip(span, other, strict=True)):
                return False
    return True


@lru_cache(maxsize=4096)
def reshape_groups(before: Dims, after: Dims) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """Match runs of axes whose products agree: ((in_first, in_last), (out_first, out_last)) half-open, in order."""
    groups, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        groups.append(((i0, i), (j0, j)))
    return tuple(groups)


def flat_ranges(box: Box, dims: Dims, strides: Dims) -> Iterator[tuple[range, int, int]]:
    """A box of axes `dims`, as ranges over their flattened index: (range, destination offset, destination stride).

    Axes join into one range while both the flat index and the destination advance evenly; the others are enumerated.
    """
    pitches = row_major(dims)
    joined, stride, k = range(1), 0, len(box)
    while k:
        axis, pitch = box[k - 1], pitches[k - 1]
        if len(joined) == 1:
            joined = range(joined.start + axis.start * pitch, joined.start + axis.stop * pitch, axis.step * pitch)
            stride = strides[k - 1]
        elif len(axis) == 1:
            joined = range(joined.start + axis[0] * pitch, joined.stop + axis[0] * pitch, joined.step)
        elif axis.step * pitch == len(joined) * joined.step and strides[k - 1] == len(joined) * stride:
            start = joined.start + axis[0] * pitch
            joined = range(start, start + len(axis) * axis.step * pitch, joined.step)
            # joined.step divides the new length because it divides axis.step * pitch
        else:
            break
        k -= 1
    for index in product(*(range(len(axis)) for axis in box[:k])):
        shift = sum(box[n][at] * pitches[n] for n, at in enumerate(index))
        offset = sum(strides[n] * at for n, at in enumerate(index))
        yield range(joined.start + shift, joined.stop + shift, joined.step), offset, stride


MAX_PHASES = 16  # columns that a strided range is taken apart into, so that short rows do not become a box each


def fold_boxes(flat: range, dims: Dims, offset: int, stride: int) -> Iterator[tuple[Box, int, Dims]]:
    """A range over the flattened index of axes `dims`, as boxes of those axes: (box, destination offset, strides)."""
    work: list[tuple[range, Dims, int, int, Box, Dims]] = [(flat, dims, offset, stride, (), ())]
    while work:
        part, rest, at, stride, head, head_strides = work.pop()
        if not part:
            continue
        if len(rest) <= 1:
            tail: Box = (part,) if rest else ()
            tail_strides: Dims = (stride,) if rest else ()
            yield (*head, *tail), at, (*head_strides, *tail_strides)
            continue
        pitch = prod(rest[1:])
        first, last = part[0] // pitch, part[-1] // pitch
        starts = part.step == 1 and part[0] % pitch == 0
        whole = (part[-1] + 1) // pitch - first if starts else 0
        if whole > 0:  # rows taken whole stay one box
            box = (*head, range(first, first + whole), *full_box(rest[1:]))
            inner = tuple(stride * size for size in row_major(rest[1:]))
            yield box, at, (*head_strides, stride * pitch, *inner)
            done = whole * pitch
            work.append((part[done:], rest, at + done * stride, stride, head, head_strides))
            continue
        if last > first and part.step % pitch == 0:  # the same place in evenly spaced rows
            column = part[0] % pitch
            rows, inside = range(first, last + 1, part.step // pitch), range(column, column + 1)
            work.append((inside, rest[1:], at, stride, (*head, rows), (*head_strides, stride)))
            continue
        period = pitch // gcd(part.step, pitch)  # elements after which the column is the first one's again
        if part.step > 1 and period <= MAX_PHASES and last - first > 2 * period:
            phases = ((part[k::period], at + k * stride) for k in reversed(range(period)))
            work.extend((phase, rest, begin, period * stride, head, head_strides) for phase, begin in phases)
            continue
        # one row, then the others: rows in which nothing is wanted cost nothing, and nothing is written down beforehand
        count = len(range(part[0], min(part[-1] + 1, (first + 1) * pitch), part.step))
        begin = part[0] - first * pitch
        inside = range(begin, begin + count * part.step, part.step)
        work.append((part[count:], rest, at + count * stride, stride, head, head_strides))
        work.append((inside, rest[1:], at, stride, (*head, range(first, first + 1)), (*head_strides, 0)))

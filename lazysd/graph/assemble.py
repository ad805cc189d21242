"""From the chunks that files hold to the node of the whole tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise, repeat
from math import gcd, prod
from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

from ..errors import FormatError, UnsupportedCheckpointError
from ..stores.strict_json import show
from .boxes import Box, Dims, covers_once, row_major
from .leaves import FileRange, Full
from .node import Node
from .ops import Permute
from .rewrite import build, concat, reshape, slice_

if TYPE_CHECKING:
    from ..formats.base import Chunk, Columns, StoredTensor

N = TypeVar("N", bound=Node)
_code, _dims = itemgetter(0), itemgetter(1)  # of a formats.base.Kind
MOST_CUTS = 64  # for each part: real saves cut none, or each a few times


def assemble_columns(kind: type[N], columns: Iterable[Columns]) -> dict[str, N]:
    """The nodes of tensors that lie whole in files, as nearly all do: at the speed of C, for a checkpoint has many."""
    nodes: dict[str, N] = {}
    for file, keys, starts, kinds in columns:
        leaves = map(FileRange, repeat(file), starts)
        nodes.update(zip(keys, map(kind, leaves, repeat(()), map(_dims, kinds), map(_code, kinds)), strict=True))
    return nodes


def assemble(kind: type[N], key: str, tensor: StoredTensor) -> N:
    """The node that the chunks of a tensor make up.

    Args:
        kind: the class of the nodes.
        key: the tensor's name, for messages.

    Raises:
        FormatError: the chunks leave holes or overlap.
        UnsupportedCheckpointError: elements of a chunk share memory.
    """
    if len(tensor.chunks) == 1:
        (chunk,) = tensor.chunks
        if not chunk.starts and chunk.strides is None:
            return kind(FileRange(chunk.file, chunk.offset), (), tensor.dims, tensor.code)
        if chunk.sizes == tensor.dims and not any(chunk.starts):
            return _part(kind, key, tensor.code, chunk)
    parts: list[tuple[Box, N]] = []
    for chunk in tensor.chunks:
        box = tuple(range(start, start + size) for start, size in zip(chunk.starts, chunk.sizes, strict=True))
        if all(box):
            parts.append((box, _part(kind, key, tensor.code, chunk)))
    if any(len(box) != len(tensor.dims) for box, _ in parts) or not covers_once([box for box, _ in parts], tensor.dims):
        raise FormatError(
            f"{show(key)}: its {len(parts)} parts do not make up {list(tensor.dims)}; was the save interrupted?"
        )
    if not parts:
        return kind(Full(0.0), (), tensor.dims, tensor.code)
    return _Joiner(key, MOST_CUTS * len(parts)).join(parts, 0)


def _part(kind: type[N], key: str, code: str, chunk: Chunk) -> N:
    """One chunk. A strided one is cut out of the dense tensor that its strides step through."""
    strides, dims = chunk.strides, chunk.sizes
    if strides is None or not prod(dims):
        return kind(FileRange(chunk.file, chunk.offset), (), dims, code)
    long = [axis for axis, size in enumerate(dims) if size > 1]
    if all(strides[axis] == pitch for axis, pitch in enumerate(row_major(dims)) if axis in long):
        return kind(FileRange(chunk.file, chunk.offset), (), dims, code)
    order = sorted(long, key=lambda axis: -strides[axis])
    pitch = strides[order[0]]  # of the axis of the leaf that was made last, in elements
    stored, box = [dims[order[0]]], [range(dims[order[0]])]
    for axis in order[1:]:
        finer = gcd(pitch, strides[axis])
        step = strides[axis] // finer
        stored.append(pitch // finer)
        if (dims[axis] - 1) * step >= stored[-1] or not step:
            raise UnsupportedCheckpointError(
                f"{show(key)}: elements of shape {show(list(dims))} with strides {show(list(strides))} overlap or lie "
                "askew in their storage; save a contiguous() tensor"
            )
        box.append(range(0, (dims[axis] - 1) * step + 1, step))
        pitch = finer
    if not pitch:
        raise UnsupportedCheckpointError(f"{show(key)}: it is an expanded view; save a contiguous() tensor")
    leaf = kind(FileRange(chunk.file, chunk.offset), (), (*stored, pitch), code)
    found = slice_(leaf, (*box, range(1)), drop=(len(order),))
    natural: Dims = tuple(order.index(axis) for axis in long)
    return reshape(build(Permute(natural), (found,)), dims)


class _Joiner:
    """Puts parts that tile a box together, axis by axis; what several rows of others meet is cut where they meet."""

    def __init__(self, key: str, most: int):
        self.key, self.left = key, most  # cuts that are still allowed: they may be many more than the parts

    def join(self, parts: Sequence[tuple[Box, N]], axis: int) -> N:
        """The parts as one node; they differ from `axis` on."""
        if len(parts) == 1:
            return parts[0][1]
        rows = self._rows(parts, axis)
        return concat(tuple(self.join(row, axis + 1) for row in rows), axis)

    def _rows(self, parts: Sequence[tuple[Box, N]], axis: int) -> list[list[tuple[Box, N]]]:
        bounds = sorted({bound for box, _ in parts for bound in (box[axis].start, box[axis].stop)})
        rows: dict[tuple[int, int], list[tuple[Box, N]]] = {cut: [] for cut in pairwise(bounds)}
        place = {bound: number for number, bound in enumerate(bounds)}
        for box, node in parts:
            here = box[axis]
            for low, high in pairwise(bounds[place[here.start] : place[here.stop] + 1]):
                inside = tuple(range(len(other)) for other in box)
                cut = (*inside[:axis], range(low - here.start, high - here.start), *inside[axis + 1 :])
                rows[low, high].append(((*box[:axis], range(low, high), *box[axis + 1 :]), slice_(node, cut)))
                self.left -= 1
                if self.left < 0:
                    raise UnsupportedCheckpointError(
                        f"{show(self.key)}: its parts lie across each other, which takes too many cuts; save it again "
                        "with parts that lie side by side"
                    )
        return list(rows.values())

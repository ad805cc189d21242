"""cached(): a tensor that remembers what was read of it, in a bounded number of bytes. Nothing is cached unasked.

A tensor is cut into cells of at most 2 MB, the tiles in which the mover computes it whole. A request is cut along
them, always in the same way; what is in memory already decides only where each part comes from. Blocks are found by
cell, so that a slice finds what the whole left behind. Saving looks through caches: every byte is read once there,
and a plan must not depend on what happens to be in memory.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

from ..arguments import checked
from ..graph.base import Inputs
from ..graph.boxes import Box, Dims, box_dims, full_box
from ..graph.compute import Computed
from ..graph.leaves import InMemory
from ..graph.node import Node
from ..graph.sharded import Sharded
from ..graph.walk import nodes
from ..sizes import parse_size
from .lazy import LazyTensor

if TYPE_CHECKING:
    import torch

CELL_NBYTES = 2 << 20
BLOCK_OVERHEAD_NBYTES = 1 << 10  # the Python and torch objects of a kept block, counted as part of it
MAX_BLOCKS_A_CELL = 16  # scattered parts of one cell; more would make looking them up slow


@checked
def cached(node: LazyTensor, max_nbytes: int | str = "256MB") -> LazyTensor:
    """Keep what is read of a tensor in host memory, the least recently used blocks going first.

    Reads nothing now, and later what is asked for, never more. What is kept is not read again, through slices and
    permutes of the result as well; `reads()` says what would be read at that moment. Results are copies, so editing
    one changes nothing kept. Thread-safe; two threads that miss at once both read. A save reads past the cache. A
    pickled copy starts empty.

    >>> import torch, lazysd
    >>> t = lazysd.cached(lazysd.from_torch(torch.eye(3)), max_nbytes="1MB")
    >>> t[1].materialize()
    tensor([0., 1., 0.])

    Args:
        node: any lazy tensor.
        max_nbytes: bytes kept at most, or "256MB"; each block counts 1 kB more than its elements.

    Returns:
        A LazyTensor of the same shape and dtype.

    Raises:
        ValueError: `max_nbytes` is no size. TypeError: a tensor spread over ranks; cache its part, `.local`.
    """
    if isinstance(node.op, Sharded):
        raise TypeError("cannot cache a tensor that is spread over ranks; cache its part on this rank, .local")
    cell, room = [], max(1, CELL_NBYTES // node.itemsize)
    for size in reversed(node.dims):
        cell.append(max(1, min(size, room)))
        room //= max(1, size)
    op = Cached(tuple(reversed(cell)), _Store(parse_size(max_nbytes)))
    return LazyTensor(op, (node,), node.dims, node.code)


@dataclass(frozen=True, slots=True, eq=False)
class Cached(Computed):
    """Its input, remembered."""

    temporary_nbytes: ClassVar[int] = 0
    cell: Dims
    store: _Store = field(repr=False)  # what is kept is no part of what the tensor is

    def infer(self, inputs: Inputs) -> tuple[Dims, str]:
        return inputs[0].dims, inputs[0].code

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        """Each part from memory or from the input. A kept block lives as long as its operand, whatever is evicted."""
        found: list[tuple[Node, Box]] = []
        for cell, part, _ in _parts(box, self.cell):
            block = self.store.get(cell, part)
            if block is None:
                found.append((node.inputs[0], part))
            else:
                dims = box_dims(part)
                found.append((node.like(InMemory(block), (), dims, node.code), full_box(dims)))
        return found

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        for (cell, part, place), operand in zip(_parts(box, self.cell), operands, strict=True):
            target[place].copy_(operand)
            self.store.put(cell, part, operand)

    def describe(self, node: Node) -> str:
        return f"cached {node.inputs[0].op.describe(node.inputs[0])}"


def _parts(box: Box, cell: Dims) -> Iterator[tuple[Dims, Box, tuple[slice, ...]]]:
    """(cell, part of the box in it, where the part stands in the box)."""
    axes: list[list[tuple[int, range, slice]]] = []
    for axis, size in zip(box, cell, strict=True):
        cuts, at = [], 0
        while at < len(axis):
            number = axis[at] // size
            end = min(len(axis), at + len(range(axis[at], (number + 1) * size, axis.step)))
            cuts.append((number, axis[at:end], slice(at, end)))
            at = end
        axes.append(cuts)
    for choice in product(*axes):
        yield tuple(c[0] for c in choice), tuple(c[1] for c in choice), tuple(c[2] for c in choice)


class _Store:
    """Blocks of one tensor, by cell and box, least recently used first."""

    def __init__(self, max_nbytes: int) -> None:
        self.max_nbytes = max_nbytes
        self.nbytes = 0
        self._blocks: OrderedDict[tuple[Dims, Box], torch.Tensor] = OrderedDict()
        self._boxes: dict[Dims, list[Box]] = {}  # what is kept of each cell, oldest first
        self._lock = threading.Lock()
        _stores.add(self)

    def get(self, cell: Dims, box: Box) -> torch.Tensor | None:
        """The elements of `box`, if one kept block holds them all. Kept blocks are never written to."""
        with self._lock:
            for kept in self._boxes.get(cell, ()):
                if (inside := _inside(box, kept)) is not None:
                    self._blocks.move_to_end((cell, kept))
                    return self._blocks[cell, kept][inside]
        return None

    def put(self, cell: Dims, box: Box, block: torch.Tensor) -> None:
        """Keep a copy of `block`, if it fits; others go first, so that the bound holds at every moment."""
        nbytes = _cost(block)
        with self._lock:
            boxes = self._boxes.get(cell, [])
            if nbytes > self.max_nbytes or any(_inside(box, kept) is not None for kept in boxes):
                return
            covered = [kept for kept in boxes if _inside(kept, box) is not None]
            spare = boxes[:1] if len(boxes) - len(covered) >= MAX_BLOCKS_A_CELL else []
            for kept in {*covered, *spare}:
                self._drop(cell, kept)
            while self.nbytes + nbytes > self.max_nbytes:
                self._drop(*next(iter(self._blocks)))
            self._blocks[cell, box] = block.detach().to("cpu", copy=True)
            self._boxes.setdefault(cell, []).append(box)
            self.nbytes += nbytes

    def _drop(self, cell: Dims, box: Box) -> None:
        self.nbytes -= _cost(self._blocks.pop((cell, box)))
        self._boxes[cell].remove(box)
        if not self._boxes[cell]:
            del self._boxes[cell]

    def __reduce__(self) -> Any:
        return _Store, (self.max_nbytes,)


_stores: weakref.WeakSet[_Store] = weakref.WeakSet()


def _cost(block: torch.Tensor) -> int:
    return block.numel() * block.element_size() + BLOCK_OVERHEAD_NBYTES


def _inside(box: Box, outer: Box) -> tuple[slice, ...] | None:
    """Where `box` stands in `outer`; None unless all of it does."""
    found = []
    for axis, around in zip(box, outer, strict=True):
        if axis[0] not in around or axis[-1] not in around or (len(axis) > 1 and axis.step % around.step):
            return None
        step = axis.step // around.step if len(axis) > 1 else 1
        found.append(slice(around.index(axis[0]), around.index(axis[-1]) + 1, step))
    return tuple(found)


def uncached(tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
    """The same tensors without caches anywhere in their graphs. Nothing is copied where there are none."""
    if not _stores:
        return tensors
    done: dict[int, LazyTensor] = {}
    for node in nodes(tensors.values()):
        done[id(node)] = _over(node, tuple(done[id(part)] for part in node.inputs))
    return {key: done[id(node)] for key, node in tensors.items()}


def _over(node: LazyTensor, inputs: tuple[LazyTensor, ...]) -> LazyTensor:
    """The node over other inputs."""
    if isinstance(node.op, Cached):
        return inputs[0]
    if all(new is old for new, old in zip(inputs, node.inputs, strict=True)):
        return node
    made = object.__new__(type(node))
    LazyTensor.__init__(made, node.op, inputs, node.dims, node.code)
    return made

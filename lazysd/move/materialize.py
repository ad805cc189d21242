"""From a node to a tensor of its own, and which bytes that reads: what LazyTensor's methods of these names do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from .. import dtypes
from ..arguments import kind_of
from ..graph.base import Piece
from ..graph.boxes import Box, box_dims, full_box, row_major, tiles
from ..graph.leaves import FileRange
from ..graph.node import Node
from ..graph.rewrite import cast
from ..graph.sharded import Sharded
from ..graph.walk import below, pieces
from . import workers
from .blocks import HOST_BLOCK_NBYTES, byte_ranges
from .lanes import is_filled
from .pages import empty
from .places import device_of
from .tiling import compute_tiles, tile_limit

if TYPE_CHECKING:
    import torch

TILE_NBYTES = 16 << 20  # of a result that threads share out among themselves
SHARE_NBYTES = 1 << 20  # of pieces that one thread takes at a time
PARALLEL_MIN_NBYTES = 4 << 20


def source_ranges(wanted: Iterable[Piece], exact: bool = False) -> Iterator[tuple[FileRange, int, int]]:
    """(leaf, offset in the file, nbytes) of every read that filling the pieces takes, in order. Reads nothing."""
    for piece in below(wanted, compute_tiles):  # gaps between tiles are not read
        if isinstance(op := piece.node.op, FileRange):
            dims, itemsize = piece.node.dims, piece.node.itemsize
            for offset, nbytes in byte_ranges(piece.box, dims, itemsize, HOST_BLOCK_NBYTES, exact, op.file.cost):
                yield op, op.offset + offset, nbytes


def reads(node: Node) -> list[tuple[str, int, int]]:
    """The byte ranges behind a node, merged and sorted: (file, offset, nbytes)."""
    if isinstance(node.op, Sharded):  # the rest is on other ranks
        node = node.inputs[0]
    wanted = (piece for box in _boxes_of(node) for piece in pieces(node, box, 0, row_major(box_dims(box))))
    found = sorted((leaf.file.path, start, start + size) for leaf, start, size in source_ranges(wanted))
    merged: list[tuple[str, int, int]] = []
    for path, start, stop in found:
        if merged and merged[-1][0] == path and start <= merged[-1][2]:
            merged[-1] = (path, merged[-1][1], max(stop, merged[-1][2]))
        else:
            merged.append((path, start, stop))
    return [(path, start, stop - start) for path, start, stop in merged]


def mapped(node: Node) -> torch.Tensor | None:
    """A zero-copy view of a plain tensor's bytes, where its file is mapped and its offset suits the dtype."""
    import torch

    if not isinstance(node.op, FileRange) or node.op.offset % node.itemsize:
        return None
    view = node.op.file.view(node.op.offset, node.nbytes)
    return None if view is None else torch.frombuffer(view, dtype=dtypes.to_torch(node.code)).view(node.dims)


def materialize(node: Node, device: Any, dtype: Any, out: Any) -> torch.Tensor:
    """See LazyTensor.materialize."""
    import torch

    if out is not None:
        from .target import fill_target

        fill_target(out, node)
        return out  # type: ignore[no-any-return]
    if not isinstance(dtype, (torch.dtype, type(None))):
        raise TypeError(f"dtype has to be a torch.dtype, not {kind_of(dtype)}")
    wanted = node if dtype is None else cast(node, dtypes.from_torch(dtype))
    place = device_of(device)
    if not is_filled(place.type):
        return materialize(wanted, "cpu", None, None).to(place)
    if place.type == "cpu" and (view := mapped(wanted)) is not None:
        return view
    result = empty(wanted.dims, wanted.code, place)
    fill_into(wanted, result)
    return result


def fill_into(node: Node, target: torch.Tensor) -> None:
    """Fill `target` with the whole node; large results on the CPU are shared out over threads, tile by tile."""
    fill_all([(node, target)])


def fill_all(wanted: Sequence[tuple[Node, torch.Tensor]]) -> None:
    """Fill each target with its node; where that is much work on the CPU, threads share it, tile by tile."""
    import torch

    from .fill import fill

    in_flight = max((_num_in_flight(node) for node, _ in wanted), default=1)
    crew = max(workers.default_workers(), in_flight)
    on_cpu = all(target.device.type == "cpu" for _, target in wanted)
    nbytes = sum(node.nbytes for node, _ in wanted)
    if crew == 1 or not on_cpu or (nbytes < PARALLEL_MIN_NBYTES and in_flight == 1):
        for node, target in wanted:
            fill(target, (piece for _, share in _shares([(node, target)], SHARE_NBYTES) for piece in share))
        return

    inference = torch.is_inference_mode_enabled()  # a thread has a mode of its own; targets may need the caller's

    def work(job: tuple[torch.Tensor, Iterable[Piece]]) -> None:
        with torch.inference_mode(inference):
            fill(*job)

    share_nbytes = SHARE_NBYTES if in_flight == 1 else min(SHARE_NBYTES, -(-nbytes // in_flight))
    shares: Iterable[tuple[torch.Tensor, Iterable[Piece]]] = _shares(wanted, share_nbytes)
    if nbytes <= TILE_NBYTES:
        shares = list(shares)  # there may be one only, such as a whole file range
        crew = min(crew, len(shares))
    workers.run(shares, work, crew)


def _num_in_flight(node: Node) -> int:
    """Reads that a node's source bears at a time; its first leaf speaks for all."""
    while node.inputs:
        node = node.inputs[0]
    return node.op.file.cost.num_in_flight if isinstance(node.op, FileRange) else 1


def _boxes_of(node: Node) -> Iterator[Box]:
    """How a whole tensor is cut before it is filled: a large one into tiles, whoever fills it; reads() knows it."""
    whole = full_box(node.dims)
    if node.nbytes > TILE_NBYTES:
        return tiles(whole, node.itemsize, tile_limit(node, whole, TILE_NBYTES, node.nbytes))
    return iter((whole,))


def _shares(
    wanted: Iterable[tuple[Node, torch.Tensor]], share_nbytes: int
) -> Iterator[tuple[torch.Tensor, Iterable[Piece]]]:
    """Work for one thread at a time: a tile of a large tensor, some of the pieces of a smaller one."""
    for node, target in wanted:
        whole, strides, start = full_box(node.dims), target.stride(), int(target.storage_offset())
        if node.nbytes > TILE_NBYTES:
            for box in _boxes_of(node):
                offset = sum(axis.start * stride for axis, stride in zip(box, strides, strict=True))
                yield target, pieces(node, box, start + offset, strides)
            continue
        share: list[Piece] = []
        nbytes = 0
        for piece in pieces(node, whole, start, strides):
            share.append(piece)
            nbytes += prod(box_dims(piece.box)) * node.itemsize
            if nbytes >= share_nbytes:
                yield target, share
                share, nbytes = [], 0
        if share:
            yield target, share

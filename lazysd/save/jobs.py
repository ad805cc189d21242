"""The work of a save: tensors laid out over shards, shards cut into jobs that fit a worker's buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from math import prod
from typing import NamedTuple

from ..formats.base import Around, Placed, Row, Sink
from ..graph.base import Piece
from ..graph.boxes import Box, box_dims, full_box, tiles
from ..graph.leaves import FileRange, InMemory
from ..graph.node import Node
from ..graph.walk import dense_pieces
from ..move.materialize import source_ranges
from ..move.tiling import glue, is_gappy, tile_limit

PREFERRED_TILE_NBYTES = 8 << 20  # of output that one worker makes at a time, if the source's rows allow


class Target(NamedTuple):
    """A tensor of the output."""

    key: str
    node: Node
    offset: int  # of its first byte in the shard file


class Part(NamedTuple):
    """A contiguous run of a target's bytes."""

    target: Target
    number: int  # of the target in its shard
    box: Box
    nbytes: int

    @property
    def offset(self) -> int:
        """Of its first byte in the shard file."""
        node, at = self.target.node, 0
        for axis, size in zip(self.box, node.dims, strict=True):
            at = at * size + (axis.start if len(axis) else 0)
        return self.target.offset + at * node.itemsize


Unit = list[tuple[str, Node]]  # tensors that share source bytes stay together


class Job(NamedTuple):
    """Neighbouring parts of a shard: filled into one buffer, and written in one go where they touch."""

    shard: int
    parts: tuple[Part, ...]
    nbytes: int

    def __repr__(self) -> str:
        return f"Job(shard {self.shard}, {len(self.parts)} parts, {self.nbytes} bytes)"

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """(offset in the buffer, offset in the file, bytes) of parts that touch each other in the file."""
        begun, offset, nbytes = 0, self.parts[0].offset, 0
        for part in self.parts:
            if part.offset != offset + nbytes and nbytes:
                yield begun, offset, nbytes
                begun, offset, nbytes = begun + nbytes, part.offset, 0
            elif not nbytes:
                offset = part.offset
            nbytes += part.nbytes
        yield begun, offset, nbytes

    def wanted(self, first: int = 0) -> Iterator[Piece]:
        """The pieces that fill the job's buffer, whose first byte is byte `first` of its storage; glued where possible.

        Parts of a job have one dtype, and `first` is a multiple of its size.
        """
        starts = accumulate((part.nbytes for part in self.parts), initial=first)
        places = ((part.target.node, part.box, at) for part, at in zip(self.parts, starts, strict=False))
        return glue(piece for node, box, at in places for piece in dense_pieces(node, box, at // node.itemsize))


@dataclass(frozen=True, repr=False)
class Shard:
    """A file of the output."""

    name: str
    metadata: Mapping[str, str]
    around_nbytes: int  # of what stands around the tensors, a header for instance
    units: tuple[tuple[Target, ...], ...]  # targets that share source bytes stay together
    nbytes: int  # of the whole file
    sink: Sink  # the kind of file

    def __repr__(self) -> str:
        return f"Shard({self.name!r}, {self.num_targets} tensors, {self.nbytes} bytes)"

    @property
    def targets(self) -> Iterator[Target]:
        """The tensors of the shard in file order."""
        return (target for unit in self.units for target in unit)

    @property
    def num_targets(self) -> int:
        """How many tensors the shard has."""
        return sum(map(len, self.units))

    @property
    def placed(self) -> Iterator[Placed]:
        """The tensors and their places, as the sink that indexes them sees them."""
        return (Placed(self.name, _row(key, node), offset) for key, node, offset in self.targets)

    def around(self, checksums: Sequence[int]) -> Around:
        """What stands around the tensors; made anew each time, for of many tensors it is much."""
        rows = (_row(key, node) for key, node, _ in self.targets)
        return self.sink.around(rows, self.metadata, checksums, self.around_nbytes)


def _row(key: str, node: Node) -> Row:
    return Row(key, node.code, node.dims, node.nbytes)


def lay_out(
    units: Iterable[Unit], shard_nbytes: int, metadata: Mapping[str, str], stem: str, sink: Sink
) -> list[Shard]:
    """Tensors to shards: in order, never cutting between tensors that share source bytes unless they must be."""
    groups: list[list[list[tuple[str, Node]]]] = [[]]
    room = shard_nbytes
    for unit in units:
        nbytes = sum(node.nbytes for _, node in unit)
        for part in [unit] if nbytes <= shard_nbytes else [[item] for item in unit]:
            nbytes = sum(node.nbytes for _, node in part)
            if nbytes > room and groups[-1]:
                groups.append([])
                room = shard_nbytes
            groups[-1].append(part)
            room -= nbytes
    shards = []
    for number, units in enumerate(groups, 1):
        units.sort(key=lambda unit: -unit[0][1].itemsize)  # wide types first keeps every tensor aligned
        stored = sink.lay_out((_row(key, node) for unit in units for key, node in unit), metadata)
        places = iter(stored.starts)
        laid = tuple(tuple(Target(key, node, next(places)) for key, node in unit) for unit in units)
        name = sink.file_name(stem, number, len(groups))
        shards.append(Shard(name, metadata, stored.around_nbytes, laid, stored.nbytes, sink))
    return shards


MAX_SHARING = 4  # pieces of a tensor that shares rows with its neighbours


def units_of(tensors: Mapping[str, Node], show: Callable[[str, Node, Iterable[Piece]], None]) -> Iterator[Unit]:
    """Runs of neighbouring tensors that cut the same source rows, and single tensors; each is shown to `show`."""
    unit: Unit = []
    last: list[Piece] = []
    end = 0
    for key, node in tensors.items():
        node.itemsize  # noqa: B018 - refuses dtypes that cannot be moved
        every = dense_pieces(node)
        found = list(islice(every, MAX_SHARING + 1))
        show(key, node, chain(found, every))
        gappy = len(found) <= MAX_SHARING and is_gappy(found)
        if unit and gappy and last and node.code == unit[0][1].code:
            moved = [piece._replace(offset=piece.offset + end) for piece in found]
            glued = list(glue([*last, *moved]))
            if len(glued) < len(last) + len(moved):
                unit.append((key, node))
                last, end = glued, end + node.numel()
                continue
        if unit:
            yield unit
        unit, last, end = [(key, node)], found if gappy else [], node.numel()
    if unit:
        yield unit


def unit_nbytes(unit: Iterable[Target]) -> int:
    """Bytes of all of a unit."""
    return sum(target.node.nbytes for target in unit)


def natural_nbytes(unit: tuple[Target, ...]) -> int:
    """Bytes of the smallest tile that reads rows of the source whole: a unit that shares them, an expert transposed."""
    if len(unit) > 1:
        return unit_nbytes(unit)
    node = unit[0].node
    return tile_limit(node, full_box(node.dims), min(PREFERRED_TILE_NBYTES, node.nbytes), node.nbytes)


def jobs_of(number: int, shard: Shard, most_nbytes: int) -> Iterator[Job]:
    """A shard's work: units that fit stay whole, larger tensors are tiled, small neighbours share a job."""
    preferred = min(PREFERRED_TILE_NBYTES, most_nbytes)
    parts: list[Part] = []
    size = first = 0
    for unit in shard.units:
        together = unit_nbytes(unit) <= (most_nbytes if len(unit) > 1 else preferred)
        atoms = [list(_whole(unit, first))] if together else ([tile] for tile in _tiled(unit, first, most_nbytes))
        first += len(unit)
        for atom in atoms:
            nbytes = sum(part.nbytes for part in atom)
            if parts and (size + nbytes > preferred or atom[0].target.node.code != parts[0].target.node.code):
                yield Job(number, tuple(parts), size)
                parts, size = [], 0
            parts.extend(atom)
            size += nbytes
    if parts:
        yield Job(number, tuple(parts), size)


def reads_nbytes(wanted: Iterable[Piece]) -> int:
    """Bytes that filling the pieces reads. Without gaps that is their size, and no read needs to be listed."""
    total = 0
    for piece in wanted:
        if not isinstance(piece.node.op, (FileRange, InMemory)) or is_gappy((piece,), exact=True):
            total += sum(nbytes for _, _, nbytes in source_ranges((piece,), exact=True))
        elif isinstance(piece.node.op, FileRange):
            total += prod(box_dims(piece.box)) * piece.node.itemsize
    return total


def _whole(unit: Iterable[Target], first: int) -> Iterator[Part]:
    return (
        Part(target, number, full_box(target.node.dims), target.node.nbytes)
        for number, target in enumerate(unit, first)
    )


def _tiled(unit: Iterable[Target], first: int, most_nbytes: int) -> Iterator[Part]:
    for number, target in enumerate(unit, first):
        node, box = target.node, full_box(target.node.dims)
        limit = tile_limit(node, box, min(PREFERRED_TILE_NBYTES, most_nbytes), most_nbytes)
        for tile in tiles(box, node.itemsize, limit):
            yield Part(target, number, tile, node.itemsize * prod(box_dims(tile)))

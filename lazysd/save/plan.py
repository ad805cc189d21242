"""Plan: what a save would do, worked out and proved before any byte moves. No torch, no tensor data."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from textwrap import indent
from typing import Any

from ..errors import LayoutError
from ..facts import Facts
from ..formats import sinks
from ..formats.base import Sink
from ..graph.base import Piece
from ..graph.boxes import Box, box_dims, covers_once
from ..graph.building import many_nodes
from ..graph.compute import Cast, Computed
from ..graph.leaves import FileRange, InMemory
from ..graph.node import Node
from ..graph.walk import below, nodes
from ..move import workers as crew
from ..sizes import format_nbytes, parse_size
from ..tensor.cache import uncached
from ..tensor.lazy import LazyTensor
from .jobs import PREFERRED_TILE_NBYTES, Job, Shard, jobs_of, lay_out, natural_nbytes, reads_nbytes, units_of
from .memory import Needs

MAX_SHARDS = 100  # listed as HTML
FEW = 1 << 27  # casts that numpy makes in less time than importing torch takes
MAX_BOXES = 20_000  # kept until coverage is proved, and BOXES_EACH for each output; about 200 bytes each
BOXES_EACH = 4


@dataclass(frozen=True, repr=False)
class Plan:
    """A frozen description of a save. `str(plan)` for people, `as_dict()` for programs."""

    shards: tuple[Shard, ...]
    num_tensors: int
    num_sources: int  # source tensors read
    read_nbytes: int
    write_nbytes: int  # files, headers included
    tensor_nbytes: int
    max_memory: int
    workers: int  # that compute at a time
    threads: int  # that carry it out, each with a buffer of its own; a spare one computes while another one writes
    tile_nbytes: int  # the largest output buffer a worker may hold
    peak_nbytes: int  # projected growth of the process
    smallest_nbytes: int  # smallest feasible max_memory
    lossy: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stem: str = "model"  # what the files' names begin with
    calculates: bool = False  # values, for which torch is needed or worth its import; else bits are moved
    sources: tuple[Any, ...] = ()  # every file that is read
    reads_memory: bool = False  # tensors in memory are sources, too: nothing tells that one has been written to

    def jobs_of(self, number: int) -> Iterator[Job]:
        """The work of a shard, in file order."""
        return jobs_of(number, self.shards[number], self.tile_nbytes)

    def as_dict(self) -> dict[str, Any]:
        """The plan for programs; sizes in bytes."""
        return {
            "tensors": self.num_tensors,
            "source_tensors": self.num_sources,
            "read_nbytes": self.read_nbytes,
            "write_nbytes": self.write_nbytes,
            "tensor_nbytes": self.tensor_nbytes,
            "max_memory": self.max_memory,
            "projected_peak_nbytes": self.peak_nbytes,
            "smallest_max_memory": self.smallest_nbytes,
            "workers": self.workers,
            "lossy": list(self.lossy),
            "notes": list(self.notes),
            "shards": [{"name": s.name, "nbytes": s.nbytes, "tensors": s.num_targets} for s in self.shards],
        }

    def _facts(self) -> list[tuple[str, str]]:
        files = f"{len(self.shards)} file{'s' if len(self.shards) != 1 else ''}"
        memory = (
            f"{format_nbytes(self.peak_nbytes)} projected, {format_nbytes(self.max_memory)} allowed, "
            f"{format_nbytes(self.smallest_nbytes)} would do; {self.workers} worker{'s' if self.workers != 1 else ''}"
        )
        return [
            ("read", f"{format_nbytes(self.read_nbytes)} of {self.num_sources} tensors"),
            ("write", f"{format_nbytes(self.write_nbytes)}: {self.num_tensors} tensors in {files}"),
            ("memory", memory),
            ("lossy", self._losses()),
            *(("note", note) for note in self.notes),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{word:6} {said}" for word, said in self._facts())

    def __repr__(self) -> str:
        return f"Plan\n{indent(str(self), '  ')}"

    def _repr_html_(self) -> str:
        from ..display import page

        rows = [(shard.name, f"{shard.num_targets:,}", format_nbytes(shard.nbytes)) for shard in self.shards]
        files = page.counted(len(rows), "file")
        table = page.table(("file", "tensors", "bytes"), rows, "file", MAX_SHARDS)
        is_open = " open" if len(rows) <= 4 else ""
        shards = f"<details{is_open}><summary>{files}</summary>{table}</details>"
        return page.frame(f"<p><b>Plan</b></p>{page.facts(self._facts())}{shards}", repr(self))

    def _losses(self) -> str:
        if self.lossy:
            return "; ".join(self.lossy)
        if self.notes:
            return "no value that is written, but not every bit of the source can be converted back: see the notes"
        return "nothing: every bit can be converted back"


def _needs(tensors: Mapping[str, Node], sink: Sink, opened_nbytes: int) -> Needs:
    """What a save of the tensors takes of memory."""
    num_nodes, computes = 0, False
    for node in nodes(tensors.values()):
        num_nodes += 1
        computes = computes or isinstance(node.op, Computed)
    return Needs.of(num_nodes, len(tensors), sink, computes, opened_nbytes)


@many_nodes()
def make_plan(
    tensors: Mapping[str, Node],
    max_shard_size: int | str = "5GB",
    max_memory: int | str = "128MB",
    workers: int | None = None,
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
    source_nbytes: int | None = None,
    sink: Sink | None = None,
    opened_nbytes: int = 0,
) -> Plan:
    """Lay out the shards, prove the coverage and fit the work into `max_memory`.

    Args:
        tensors: what is to be written.
        max_shard_size, max_memory, workers: as in Checkpoint.save.
        metadata: `__metadata__` of the files.
        stem: what the files' names begin with.
        sink: what files to write; safetensors by default.
        source_nbytes: bytes of all tensors that had been opened, to say what was left out; None where nobody knows.
        opened_nbytes: of memory that opening has taken.

    Raises:
        MemoryBudgetError: less than the smallest feasible budget; the message names it.
        LayoutError: a tensor that cannot be written.
        ValueError: a size that cannot be read.
    """
    shard_nbytes, budget = parse_size(max_shard_size), parse_size(max_memory)
    workers = workers if workers is None else crew.asked(workers)
    sink, proof = sink or sinks.get("safetensors"), _Proof()
    needs = _needs(tensors, sink, opened_nbytes)
    needs.check(budget, len(tensors))  # before anything more is held
    metadata = {**(metadata or {}), "format": "pt"}
    shards = lay_out(units_of(tensors, proof.add), shard_nbytes, metadata, stem, sink)
    wanted = max(PREFERRED_TILE_NBYTES, max((natural_nbytes(unit) for s in shards for unit in s.units), default=0))
    num_workers, threads, most = needs.crew(budget, workers, proof.num_workers(), wanted)
    most = min(most, max(wanted, proof.largest_nbytes))
    read_nbytes = biggest = 0
    for number, shard in enumerate(shards):
        for job in jobs_of(number, shard, most):
            biggest = max(biggest, job.nbytes)
            read_nbytes += reads_nbytes(job.wanted())
    return Plan(
        shards=tuple(shards),
        num_tensors=len(tensors),
        num_sources=proof.num_leaves,
        read_nbytes=read_nbytes,
        write_nbytes=sum(shard.nbytes for shard in shards),
        tensor_nbytes=sum(node.nbytes for node in tensors.values()),
        max_memory=budget,
        workers=num_workers,
        threads=threads,
        tile_nbytes=most,
        peak_nbytes=needs.base_nbytes + threads * (needs.thread_nbytes + biggest),
        smallest_nbytes=needs.smallest_nbytes,
        lossy=tuple(f"{what} ({count} tensors)" for what, count in proof.lossy.items()),
        notes=tuple(proof.notes(source_nbytes)),
        stem=stem,
        calculates=proof.calculates,
        sources=proof.files(),
        reads_memory=proof.reads_memory,
    )


def plan_checkpoint(
    tensors: Mapping[str, LazyTensor],
    facts: Facts,
    max_shard_size: int | str,
    max_memory: int | str,
    workers: int | None,
    format: str,
) -> Plan:
    """The plan of a checkpoint's save. See Checkpoint.plan."""
    facts.check_whole("save")
    stem = "model"
    if facts.is_adapter:
        stem, max_shard_size = "adapter_model", sys.maxsize  # PEFT reads adapter_model.safetensors and no shards
    nodes, sink = uncached(tensors), sinks.get(format)
    about = (facts.metadata, stem, facts.tensor_nbytes, sink, facts.opening_nbytes)
    return make_plan(nodes, max_shard_size, max_memory, workers, *about)


class _Proof:
    """Collects what every target consumes, and shows that each source element goes to exactly one place."""

    def __init__(self) -> None:
        self.boxes: dict[int, list[Box] | None] = {}  # None where there are too many
        self.room = MAX_BOXES
        self.leaves: dict[int, Node] = {}
        self.lossy: dict[str, int] = {}
        self.confused: dict[str, int] = {}
        self.calculates, self.num_cast = False, 0
        self.largest_nbytes = 0

    @property
    def num_leaves(self) -> int:
        return len(self.leaves)

    def add(self, key: str, node: Node, found: Iterable[Piece]) -> None:
        self.largest_nbytes = max(self.largest_nbytes, node.nbytes)
        self.room += BOXES_EACH
        count = 0

        def counted() -> Iterator[Piece]:
            nonlocal count
            for piece in found:
                count += prod(box_dims(piece.box))
                yield piece

        for piece in below(counted()):
            op = piece.node.op
            if isinstance(op, Computed):
                self.num_cast += prod(box_dims(piece.box)) if isinstance(op, Cast) else 0
                self.calculates |= not op.by_bits or self.num_cast > FEW
                if what := op.lossy(piece.node):
                    self.lossy[what] = self.lossy.get(what, 0) + 1
                if what := op.confuses(piece.node):
                    self.confused[what] = self.confused.get(what, 0) + 1
            elif isinstance(op, (FileRange, InMemory)):
                self.leaves[id(piece.node)] = piece.node
                self._keep(piece)
        if count != node.numel():
            raise LayoutError(
                f"{key}: {count} of {node.numel()} elements have a source; this is a bug in an op's route"
            )

    def _keep(self, piece: Piece) -> None:
        boxes = self.boxes.setdefault(id(piece.node), [])
        if boxes is not None and self.room > 0:
            boxes.append(piece.box)
            self.room -= 1
        elif boxes is not None:
            self.boxes[id(piece.node)] = None
            self.room += len(boxes)

    @property
    def reads_memory(self) -> bool:
        """Whether tensors in memory are among the sources."""
        return any(isinstance(leaf.op, InMemory) for leaf in self.leaves.values())

    def files(self) -> tuple[Any, ...]:
        """Every file that is read."""
        ops = (leaf.op for leaf in self.leaves.values())
        return tuple({id(op.file): op.file for op in ops if isinstance(op, FileRange)}.values())

    def num_workers(self) -> int:
        """Threads used when nobody says: the CPUs there are, or the reads that the sources bear at a time."""
        in_flight = (leaf.op.file.cost.num_in_flight for leaf in self.leaves.values() if isinstance(leaf.op, FileRange))
        return max(crew.default_workers(), *in_flight, 1)

    def notes(self, source_nbytes: int | None) -> Iterator[str]:
        """What does not come back on the way back, although no value that is written changes."""
        for what, count in self.confused.items():
            yield f"{what}, may not come back ({count} tensors)"
        known = {key: boxes for key, boxes in self.boxes.items() if boxes is not None}
        partly = sum(not covers_once(boxes, self.leaves[key].dims) for key, boxes in known.items())
        if partly:
            yield f"{partly} source tensors are used in part, or more than once"
        if unknown := len(self.boxes) - len(known):
            yield f"{unknown} source tensors are used in too many parts to prove that each is used once"
        read_nbytes = sum(leaf.nbytes for leaf in self.leaves.values())
        if source_nbytes is not None and read_nbytes < source_nbytes:
            yield f"{format_nbytes(source_nbytes - read_nbytes)} of the source's tensors are left out"

"""What a save takes of memory: objects, and what each thread holds, as benchmarks/budget.py measures it."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import MemoryBudgetError
from ..formats.base import Sink
from ..graph.node import NODE_NBYTES
from ..sizes import format_nbytes

SMALLEST_TILE_NBYTES = 64 << 10
SCRATCH_NBYTES = 4 << 20  # blocks, their transposes and a thread, for each worker
COMPUTE_NBYTES = 20 << 20  # operands and temporaries of computed tiles, one upon the other, for each worker
BASE_NBYTES = 12 << 20  # the library itself, headers being parsed
OUTPUT_NBYTES = 250  # Python objects of a tensor of the result, besides its nodes
PROOF_NBYTES = 400  # more of them while coverage is proved


class Needs(NamedTuple):
    """What a save takes besides its output buffers."""

    base_nbytes: int
    thread_nbytes: int

    @classmethod
    def of(cls, num_nodes: int, num_outputs: int, sink: Sink, computes: bool, opened_nbytes: int = 0) -> Needs:
        """Of a graph of so many nodes, from the sources to the outputs; its objects use again what opening took."""
        output_nbytes = OUTPUT_NBYTES + max(PROOF_NBYTES, sink.index_row_nbytes)
        base_nbytes = BASE_NBYTES + max(NODE_NBYTES * num_nodes + output_nbytes * num_outputs, opened_nbytes)
        return cls(base_nbytes, SCRATCH_NBYTES + (COMPUTE_NBYTES if computes else 0))

    @property
    def smallest_nbytes(self) -> int:
        """The smallest feasible budget."""
        return self.base_nbytes + self.thread_nbytes + SMALLEST_TILE_NBYTES

    def check(self, budget: int, num_outputs: int) -> None:
        """Raises MemoryBudgetError where the budget is too little."""
        if budget < self.smallest_nbytes:
            raise MemoryBudgetError(
                f"max_memory {format_nbytes(budget)} is too little for {num_outputs} tensors; "
                f"the smallest that would do is {-(-self.smallest_nbytes // 1_000_000)}MB"
            )

    def crew(self, budget: int, asked: int | None, usual: int, wanted_nbytes: int) -> tuple[int, int, int]:
        """(workers, threads, bytes a buffer may have), so that all that every thread holds fits the budget.

        A buffer of `wanted_nbytes` reads rows of the source whole. For that the spare thread goes first, then workers
        that nobody asked for by number.
        """
        counts = [asked] if asked else range(usual, 0, -1)
        for limit in (wanted_nbytes, SMALLEST_TILE_NBYTES):
            for workers in counts:
                for threads in (workers + 1, workers) if workers > 1 else (1,):
                    if (most := (budget - self.base_nbytes) // threads - self.thread_nbytes) >= limit:
                        return workers, threads, most
            counts = range(asked or 1, 0, -1)
        raise AssertionError("the smallest budget has been checked")

"""What a tensor's values are like: smallest, largest, mean, quantiles, a histogram, NaN. One pass, in a budget.

Types of one or two bytes are counted by their bits, 256 or 65,536 of them, and everything follows exactly from the
counts. Wider types are summed in float64; their quantiles and histogram come from the upper 16 bits of float32 and are
right to 1 in 128.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any, NamedTuple

import numpy as np

from .arguments import checked
from .counting.tally import Tally, moments
from .counting.values import NUMBERS
from .display.stats import html_of, html_of_one, text_of, text_of_all, text_of_rows
from .display.text import fold_keys
from .facts import opening_nbytes
from .graph.node import Node
from .reduction import Tile, stream

MOST_LINES = 60  # of a table: of more tensors, those that are alike but for numbers in their keys are one line
STATS_NBYTES = 2900  # of memory that the Stats of one tensor take


@dataclass(frozen=True, repr=False)
class Stats:
    """The values of one tensor. All but the counts are over elements that are finite; nan where there are none."""

    dtype: str  # the safetensors code
    shape: tuple[int, ...]
    min: float
    max: float
    mean: float
    std: float  # of a sample (n - 1), as torch.std
    absmax: float
    num_elements: int
    num_zeros: int
    num_nan: int
    num_inf: int
    quantiles: Mapping[float, float]  # fraction -> the element of that rank
    bin_counts: tuple[int, ...]  # of the histogram
    exact: bool  # whether quantiles and histogram are exact

    @property
    def bin_edges(self) -> tuple[float, ...]:
        """Of the histogram, from min to max: one more than there are bins."""
        if not self.bin_counts:
            return ()
        return tuple(map(float, np.linspace(self.min, self.max, len(self.bin_counts) + 1)))

    @property
    def is_finite(self) -> bool:
        """Whether there is neither NaN nor infinity."""
        return not (self.num_nan or self.num_inf)

    def as_dict(self) -> dict[str, Any]:
        """For programs; what is no number is None."""
        found = {name: None if isinstance(v, float) and not isfinite(v) else v for name, v in vars(self).items()}
        return found | {
            "shape": list(self.shape),
            "quantiles": {f"{at:g}": value for at, value in self.quantiles.items()},
            "bin_edges": list(self.bin_edges),
            "bin_counts": list(self.bin_counts),
        }

    def __str__(self) -> str:
        return text_of(self)

    def __repr__(self) -> str:
        odd = f", {self.num_nan} NaN, {self.num_inf} inf" if not self.is_finite else ""
        return (
            f"Stats({self.dtype}{list(self.shape)}, min {self.min:.4g}, max {self.max:.4g}, mean {self.mean:.4g}{odd})"
        )

    def _repr_html_(self) -> str:
        return html_of_one(self)


class StatsRow(NamedTuple):
    """Tensors of one dtype and shape whose keys differ only in numbers, taken as one."""

    name: str  # "layers.{0-47}.mlp.gate.weight"
    keys: tuple[str, ...]
    stats: Stats  # of a single tensor its own; of several without quantiles and histogram
    odd: tuple[str, ...]  # keys of those that hold NaN or infinity


class CheckpointStats(Mapping[str, Stats]):
    """Stats by key, in the order of the keys. `skipped` names tensors whose elements are no real numbers."""

    def __init__(self, found: Mapping[str, Stats], skipped: tuple[str, ...] = ()):
        self._found, self.skipped = dict(found), skipped

    def __getitem__(self, key: str) -> Stats:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def not_finite(self) -> dict[str, Stats]:
        """Tensors that hold NaN or infinity."""
        return {key: one for key, one in self._found.items() if not one.is_finite}

    def rows(self) -> list[StatsRow]:
        """Tensors that are alike but for numbers in their keys, each row taken as one."""
        rows = fold_keys({key: (one.dtype, one.shape) for key, one in self.items()})
        odd = frozenset(self.not_finite)
        return [
            StatsRow(name, keys, _joined([self[key] for key in keys]), tuple(key for key in keys if key in odd))
            for name, keys in rows
        ]

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return self.outline() | {"tensors": {key: one.as_dict() for key, one in self.items()}}

    def outline(self) -> dict[str, Any]:
        """`as_dict()`, with a function in place of what each tensor's Stats say, which returns that."""
        return {"tensors": {key: one.as_dict for key, one in self.items()}, "skipped": list(self.skipped)}

    def __str__(self) -> str:
        return text_of_all(self) if len(self) <= MOST_LINES else text_of_rows(self.rows())

    def __repr__(self) -> str:
        return f"CheckpointStats({self._headline()})"

    def _headline(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"{len(self)} tensor{'s' if len(self) != 1 else ''}, {len(self.not_finite)} with NaN or inf{skipped}"

    def _repr_html_(self) -> str:
        return html_of(self, self._headline())


@checked
def stats_of(
    tensors: Mapping[str, Node],
    num_workers: int | None = None,
    max_memory: int | str = "128MB",
    report: Callable[[int, int], None] | None = None,
) -> CheckpointStats:
    """Stats of every tensor, each read once. Arguments as in reduction.stream."""
    wanted = [key for key, node in tensors.items() if node.code in NUMBERS]
    found = {key: _stats(tensors[key], Tally(tensors[key].code)) for key in wanted if not all(tensors[key].dims)}
    tallies: dict[str, Tally] = {}  # of tensors of several tiles
    lock = threading.Lock()

    def visit(tile: Tile) -> None:
        key = wanted[tile.number]
        node, tally = tensors[key], Tally(tile.codes[0])
        tally.add(tile.held[0])
        with lock:
            if key in tallies:
                tally.join(tallies.pop(key))
            if tally.num_elements < node.numel():
                tallies[key] = tally
                return
        result = _stats(node, tally)
        with lock:
            found[key] = result

    groups, opened = [(tensors[key],) for key in wanted], opening_nbytes(tensors)
    stream(groups, visit, num_workers, max_memory, report, STATS_NBYTES, opened_nbytes=opened)
    ordered = {key: found[key] for key in wanted}
    return CheckpointStats(ordered, tuple(key for key in tensors if key not in ordered))


def _joined(parts: list[Stats]) -> Stats:
    """Several tensors taken as one."""
    if len(parts) == 1:
        return parts[0]
    finite = [(one.num_elements - one.num_nan - one.num_inf, one) for one in parts]
    finite = [(count, one) for count, one in finite if count]
    rows = [(count, one.mean, (count - 1) * one.std * one.std if count > 1 else 0.0) for count, one in finite]
    mean, std = moments(np.array(rows).reshape(-1, 3))
    low, high = min((one.min for _, one in finite), default=nan), max((one.max for _, one in finite), default=nan)
    return replace(
        parts[0],
        min=low,
        max=high,
        mean=mean,
        std=std,
        absmax=max(abs(low), abs(high)),
        **{
            name: sum(getattr(one, name) for one in parts)
            for name in ("num_elements", "num_zeros", "num_nan", "num_inf")
        },
        quantiles={},
        bin_counts=(),
    )


def _stats(node: Node, tally: Tally) -> Stats:
    return Stats(dtype=node.code, shape=tuple(node.dims), **tally.result())

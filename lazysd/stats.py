"""What a tensor's values are like: smallest, largest, mean, quantiles, a histogram, NaN. One pass, in a budget.

Types of one or two bytes are counted by their bits, 256 or 65,536 of them, and everything follows exactly from the
counts. Wider types are summed in float64; their quantiles and histogram come from the upper 16 bits of float32 and are
right to 1 in 128.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import fsum, inf, isfinite, nan, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from . import dtypes
from .arguments import checked
from .display.stats import html_of, html_of_one, text_of, text_of_all
from .graph.node import Node
from .reduction import Tile, chunks, stream

if TYPE_CHECKING:
    import torch

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
NUM_BINS = 40
STATS_NBYTES = 2500  # of memory that the Stats of one tensor take
_COUNTED = 1 << 19  # elements whose bits are counted at a time
_NARROW = ("BF16", "F16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "U8", "I8", "BOOL")
_WIDE = ("F32", "F64", "I16", "U16", "I32", "U32", "I64", "U64")


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

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"tensors": {key: one.as_dict() for key, one in self.items()}, "skipped": list(self.skipped)}

    def __str__(self) -> str:
        return text_of_all(self)

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
    wanted = [key for key, node in tensors.items() if node.code in (*_NARROW, *_WIDE)]
    tallies: dict[str, _Tally] = {}
    found = {key: _Tally(tensors[key]).result() for key in wanted if not all(tensors[key].dims)}
    lock = threading.Lock()

    def visit(tile: Tile) -> None:
        key = wanted[tile.number]
        with lock:
            tally = tallies.setdefault(key, _Tally(tensors[key]))
        if tally.add(tile.tensors[0]):  # the last tile: its counts are let go
            result = tally.result()
            with lock:
                found[key] = result
                del tallies[key]

    stream([(tensors[key],) for key in wanted], visit, num_workers, max_memory, report, STATS_NBYTES)
    ordered = {key: found[key] for key in wanted}
    return CheckpointStats(ordered, tuple(key for key in tensors if key not in ordered))


class _Tally:
    """What is known of a tensor so far. Tiles may come in any order and from several threads."""

    def __init__(self, node: Node):
        self._node, self._lock = node, threading.Lock()
        self._narrow = node.code in _NARROW
        self._left = node.numel()
        self._counts = np.zeros(1 << (8 if self._narrow and node.itemsize == 1 else 16), dtype=np.int64)
        self._parts: list[tuple[int, float, float]] = []  # finite elements, their mean, squares of what is left of it
        self._bounds = [inf, -inf]
        self._odd = [0, 0, 0]  # zeros, NaN, infinite

    def add(self, tile: torch.Tensor) -> bool:
        """Take a tile in; whether it was the last one."""
        counts = _bits(tile, self._narrow)
        parts, bounds, odd = ([], [inf, -inf], [0, 0, 0]) if self._narrow else _summed(tile)
        with self._lock:
            self._counts += counts
            self._parts += parts
            self._bounds = [min(self._bounds[0], bounds[0]), max(self._bounds[1], bounds[1])]
            self._odd = [mine + more for mine, more in zip(self._odd, odd, strict=True)]
            self._left -= tile.numel()
            return self._left == 0

    def result(self) -> Stats:
        """What all tiles together say."""
        values = _values(self._node.code, self._narrow)
        good = np.isfinite(values) & (self._counts > 0)
        order = np.flatnonzero(good)
        order = order[np.argsort(values[order], kind="stable")]
        seen, counts = values[order], self._counts[order]
        if self._narrow:
            zeros = int(counts[seen == 0].sum())
            nans = int(self._counts[np.isnan(values)].sum())
            odd = (zeros, nans, int(self._counts[np.isinf(values)].sum()))
            low, high = (float(seen[0]), float(seen[-1])) if len(seen) else (nan, nan)
            mean, std = _moments([(int(n), float(v), 0.0) for n, v in zip(counts, seen, strict=True)])
        else:
            odd = (self._odd[0], self._odd[1], self._odd[2])
            low, high = self._bounds if self._parts else (nan, nan)
            mean, std = _moments(self._parts)
            seen = np.clip(seen, low, high)
        bins = _histogram(seen, counts, low, high)
        return Stats(
            dtype=self._node.code,
            shape=tuple(self._node.dims),
            min=low,
            max=high,
            mean=mean,
            std=std,
            absmax=max(abs(low), abs(high)),
            num_elements=self._node.numel(),
            num_zeros=odd[0],
            num_nan=odd[1],
            num_inf=odd[2],
            quantiles=_quantiles(seen, counts),
            bin_counts=bins,
            exact=self._narrow,
        )


def _bits(tile: torch.Tensor, narrow: bool) -> np.ndarray[Any, Any]:
    """How often each pattern of bits stands in a tile: all of narrow types, the upper 16 of float32 for others."""
    import torch

    size = 256 if narrow and tile.dtype.itemsize == 1 else 65536
    total = torch.zeros(size, dtype=torch.int64)
    word = torch.uint8 if size == 256 else torch.uint16
    flat, places = tile.view(-1), torch.empty(min(_COUNTED, tile.numel()), dtype=torch.int64)
    for start in range(0, flat.numel(), _COUNTED):
        part = flat[start : start + _COUNTED]
        here = places[: part.numel()]
        if narrow:
            here.copy_(part.view(word))
        else:
            here.copy_(part.to(torch.float32).view(torch.int32) >> 16).bitwise_and_(0xFFFF)
        total += torch.bincount(here, minlength=size)
    found: np.ndarray[Any, Any] = total.numpy()
    return found


def _summed(tile: torch.Tensor) -> tuple[list[tuple[int, float, float]], list[float], list[int]]:
    """(count, mean, sum of squares around it) of each chunk's finite elements; bounds; zeros, NaN and infinities."""
    import torch

    parts: list[tuple[int, float, float]] = []
    bounds, odd = [inf, -inf], [0, 0, 0]
    for chunk in chunks(tile):
        wide = chunk.to(torch.float64)
        odd[0] += wide.numel() - int(torch.count_nonzero(wide))
        total = float(wide.sum())
        if not isfinite(total):
            odd[1] += int(torch.count_nonzero(wide.isnan()))
            odd[2] += int(torch.count_nonzero(wide.isinf()))
            wide = wide[wide.isfinite()]
            total = float(wide.sum())
        if not wide.numel():
            continue
        low, high = torch.aminmax(wide)
        bounds = [min(bounds[0], float(low)), max(bounds[1], float(high))]
        mean = total / wide.numel()
        away = wide - mean
        parts.append((wide.numel(), mean, float(torch.dot(away, away))))
    return parts, bounds, odd


def _moments(parts: list[tuple[int, float, float]]) -> tuple[float, float]:
    """Mean and standard deviation; the same bits in whatever order the parts stand."""
    total = sum(count for count, _, _ in parts)
    if not total:
        return nan, nan
    mean = fsum(count * part for count, part, _ in parts) / total
    squares = fsum(spread for _, _, spread in parts) + fsum(count * (part - mean) ** 2 for count, part, _ in parts)
    return mean, sqrt(squares / (total - 1)) if total > 1 else nan


def _values(code: str, narrow: bool) -> np.ndarray[Any, Any]:
    """The value that each pattern of bits stands for."""
    import torch

    if narrow and dtypes.itemsize(code) == 1:
        table = torch.arange(256, dtype=torch.int16).to(torch.uint8)
        return (table if code in ("U8", "BOOL") else table.view(dtypes.to_torch(code))).double().numpy()
    words = torch.arange(65536, dtype=torch.int32)
    if narrow:
        return words.to(torch.uint16).view(dtypes.to_torch(code)).double().numpy()
    return (words << 16).view(torch.float32).double().numpy()


def _quantiles(seen: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> dict[float, float]:
    total = int(counts.sum())
    if not total:
        return {}
    ranks = np.cumsum(counts)
    places = [int(np.searchsorted(ranks, int(at * (total - 1)), side="right")) for at in QUANTILES]
    return {at: float(seen[place]) for at, place in zip(QUANTILES, places, strict=True)}


def _histogram(seen: np.ndarray[Any, Any], counts: np.ndarray[Any, Any], low: float, high: float) -> tuple[int, ...]:
    if not len(seen) or not isfinite(high - low):
        return ()
    if low == high:
        return (int(counts.sum()),)
    bins, _ = np.histogram(seen, bins=NUM_BINS, range=(low, high), weights=counts)
    return tuple(round(float(count)) for count in bins)

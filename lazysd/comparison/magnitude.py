"""How far two tensors of one shape lie apart: sums that are added up tile by tile, to the same bits in any order."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from math import fsum, inf, sqrt
from typing import Any

from ..counting.chosen import kernel
from ..dtypes import itemsize
from ..reduction import Bytes


@dataclass(frozen=True)
class Magnitude:
    """The distance of B from A, over all elements that are finite in both."""

    num_elements: int
    num_changed: int  # elements with other bits, or, where the dtypes differ, other values
    norm: float  # square root of the sum of squares of A
    other_norm: float  # of B
    delta_norm: float  # of B - A
    max_delta: float  # largest |B - A|
    dot: float  # sum of the products of A and B
    num_nan: tuple[int, int] = (0, 0)  # in A and in B
    num_inf: tuple[int, int] = (0, 0)
    num_unlike: int = 0  # elements that are not finite in one of them and not the same in the other

    @property
    def relative(self) -> float:
        """delta_norm over norm: 0.01 is a move by one percent. Infinite where A is zero and B is not."""
        return self.delta_norm / self.norm if self.norm else (inf if self.delta_norm else 0.0)

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between A and B; None where one of them is zero."""
        if not self.norm or not self.other_norm:
            return None
        return max(-1.0, min(1.0, self.dot / self.norm / self.other_norm))

    def as_dict(self) -> dict[str, Any]:
        """For programs; what is not finite is null in JSON."""
        found = {**vars(self), "relative": self.relative, "cosine": self.cosine}
        del found["dot"]
        return {name: _json(value) for name, value in found.items()}


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return None if isinstance(value, float) and value in (inf, -inf) else value


def joined(parts: list[Magnitude]) -> Magnitude:
    """Several tensors taken as one."""
    if len(parts) == 1:
        return parts[0]

    def root(name: str) -> float:
        return sqrt(fsum(getattr(part, name) ** 2 for part in parts))

    def both(name: str) -> tuple[int, int]:
        return sum(getattr(part, name)[0] for part in parts), sum(getattr(part, name)[1] for part in parts)

    return Magnitude(
        num_elements=sum(part.num_elements for part in parts),
        num_changed=sum(part.num_changed for part in parts),
        norm=root("norm"),
        other_norm=root("other_norm"),
        delta_norm=root("delta_norm"),
        max_delta=max(part.max_delta for part in parts),
        dot=fsum(part.dot for part in parts),
        num_nan=both("num_nan"),
        num_inf=both("num_inf"),
        num_unlike=sum(part.num_unlike for part in parts),
    )


class Sums:
    """What is known of one pair of tensors so far. Tiles may be added in any order and by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: list[tuple[float, float, float, float]] = []  # squares of A, B, B - A; A * B
        self._max = 0.0
        self._counts = [0, 0, 0, 0, 0, 0, 0]  # elements, changed, NaN in A, in B, infinite in A, in B, unlike

    def add(self, codes: tuple[str, str], a: Bytes, b: Bytes, num_changed: int | None) -> None:
        """A tile of both, flat bytes. `num_changed`: elements with other bits; None counts other values."""
        found = kernel().apart(codes, a, a if num_changed == 0 else b)
        changed = found.num_changed if num_changed is None else num_changed
        counts = [len(a) // itemsize(codes[0]), changed, *found.num_nan, *found.num_inf, found.num_unlike]
        with self._lock:
            self._parts.append(tuple(map(fsum, found.rows.T)))  # type: ignore[arg-type]
            self._max = max(self._max, found.largest)
            self._counts = [mine + more for mine, more in zip(self._counts, counts, strict=True)]

    def result(self) -> Magnitude:
        """What all tiles together say."""
        a, b, delta, dot = map(fsum, zip(*self._parts, strict=True)) if self._parts else (0.0,) * 4
        total, changed, *odd = self._counts
        nan, infinite = (odd[0], odd[1]), (odd[2], odd[3])
        return Magnitude(total, changed, sqrt(a), sqrt(b), sqrt(delta), self._max, dot, nan, infinite, odd[4])

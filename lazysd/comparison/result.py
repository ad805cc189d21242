"""Comparison: what comparing two checkpoints found, for programs, for terminals and for notebooks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..display.text import fold_keys
from ..stores.strict_json import printable
from .folding import LESS, Moved, by_layer, html_table, text_table
from .magnitude import Magnitude

MAX_SHOWN = 20
MAX_PLACES = 5
SAME_VALUES = "the same values"  # end of the detail of a difference in dtype alone
ABSENT = "absent"  # the kind of a difference that nobody can see: a side lacks the shard


class Difference(NamedTuple):
    """The first place where two tensors of one key differ."""

    key: str
    kind: str  # "missing", "extra", ABSENT, "shape", "dtype", "values"; of adapters "scale", "rank", "setting", …
    detail: str
    position: tuple[int, ...] | None = None  # of the first differing element
    num_different: int = 0  # elements with other bits; other kinds leave it 0

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return self._asdict() | {"position": list(self.position) if self.position is not None else None}


@dataclass(repr=False)
class Comparison:
    """What comparing two mappings found."""

    num_equal: int = 0
    compared_nbytes: int = 0
    differences: list[Difference] = field(default_factory=list)
    values: bool = True  # whether elements were compared, and not only keys, shapes and dtypes
    unknown: list[str] = field(default_factory=list)  # what neither side states, so that nothing could be compared
    magnitudes: dict[str, Magnitude] = field(default_factory=dict)  # by key, where distances were asked for
    names: tuple[str, str] = ("first", "second")

    @property
    def equal(self) -> bool:
        """Whether nothing differs: keys, shapes, dtypes, what adapters state, all bits; and no shard is missing."""
        return not self.differences

    def rows(self, sort: str = "relative") -> list[Moved]:
        """How far each layer's modules moved, the farthest first; experts of one layer together.

        Args:
            sort: "relative" (norm of the difference over the norm of the first), "max", "changed", "cosine" or "name".
        """
        return by_layer(self.magnitudes, sort)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        found = self.outline()
        return found | {
            "differences": [make() for make in found["differences"]],
            "magnitudes": {key: make() for key, make in found["magnitudes"].items()},
        }

    def outline(self) -> dict[str, Any]:
        """`as_dict()`, with a function in place of each difference and magnitude, which returns what it says."""
        return {
            "equal": self.equal,
            "values_compared": self.values,
            "not_compared": self.unknown,
            "equal_tensors": self.num_equal,
            "compared_nbytes": self.compared_nbytes,
            "differences": [one.as_dict for one in self.differences],
            "magnitudes": {key: found.as_dict for key, found in self.magnitudes.items() if found.num_changed},
        }

    def headline(self) -> str:
        """One line: what is equal, and how many differences of which kind."""
        kinds = Counter(SAME_VALUES if one.detail.endswith(SAME_VALUES) else one.kind for one in self.differences)
        differs = "".join(f", {number} {self._verb(kind, number)}" for kind, number in kinds.items())
        equal = f"{self.num_equal} tensor{'s' if self.num_equal != 1 else ''}"
        if self.values:
            return f"{equal} equal{differs}"
        looked = f"{equal} of equal shape and dtype{differs}"
        return f"{looked}; their values were not looked at (--no-values)"

    def _verb(self, kind: str, number: int) -> str:
        if kind == ABSENT:
            return "not compared, in missing shards"
        if kind == SAME_VALUES:
            return f"{'differs' if number == 1 else 'differ'} in dtype alone, their values are the same"
        only = {"missing": self.names[1], "extra": self.names[0]}.get(kind)
        return f"only in {only}" if only else f"{'differs' if number == 1 else 'differ'} in {kind}"

    def details(self, limit: int = MAX_SHOWN) -> list[str]:
        """A line for each of the first differences, and one for everything that could not be compared.

        Layers and experts that differ alike are one line. Of values that were measured, and are in `table`, the first
        differing element is named where no more than a few tensors have one.
        """
        alike: dict[tuple[str, str], dict[str, None]] = {}
        measured = sum(one.kind == "values" and one.key in self.magnitudes for one in self.differences)
        for one in self.differences:
            if one.kind != "values" or one.key not in self.magnitudes or measured <= MAX_PLACES:
                alike.setdefault((one.kind, one.detail), {})[one.key] = None
        rows = [(name, *what, keys) for what, found in alike.items() for name, keys in fold_keys(found)]
        lines = [f"  {name}: {kind}: {printable(detail)}" for name, kind, detail, _ in rows[:limit]]
        if left := sum(len(keys) for *_, keys in rows[limit:]):
            lines.append(f"  … and {left} more (all with --json)")
        return lines + [f"  not compared: {what}" for what in self.unknown]

    def table(
        self, sort: str = "relative", top: int | None = MAX_SHOWN, bars: bool = False, width: int | None = None
    ) -> str:
        """What moved, a line a row, of `width` characters at most; `bars` draws how far in place of the numbers."""
        return text_table(self.rows(sort), top, bars, width, LESS if sort == "relative" else "moved")

    def plot(self, top: int = 30, axes: Any = None) -> Any:
        """Draw how far each row moved, the farthest on top; needs matplotlib. Returns the axes."""
        import matplotlib.pyplot as plt

        rows = self.rows()[:top][::-1]
        if axes is None:
            _, axes = plt.subplots(figsize=(8, max(1.0, 0.25 * len(rows))), layout="constrained")
        axes.barh([row.name for row in rows], [row.magnitude.relative for row in rows])
        axes.set_xlabel("norm of the difference / norm")
        return axes

    def __str__(self) -> str:
        return "\n".join(line for line in (self.headline(), self.table(), *self.details()) if line)

    def __repr__(self) -> str:
        return f"Comparison({self.headline()})"

    def _repr_html_(self) -> str:
        return html_table(self.headline(), self.rows(), self.details())

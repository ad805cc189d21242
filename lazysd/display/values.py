"""A tensor's values as text, of which only the corners are read where it is large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from ..graph.boxes import Dims

if TYPE_CHECKING:
    import torch

MAX_WHOLE = 1000  # elements that are shown all, as torch shows them
EDGE = 3  # at either end of each axis of a larger tensor
MAX_AXES = 5  # of a larger tensor that are laid out; of the axes before them only the first index is shown

Picks = tuple[tuple[int, ...], ...]


def picks(dims: Dims) -> Picks | None:
    """The indices of each axis that are shown, None where that is all of them."""
    if prod(dims) <= MAX_WHOLE:
        return None
    shown: list[tuple[int, ...]] = []
    for place, size in enumerate(dims):
        if len(dims) - place > MAX_AXES:
            shown.append((0,))
        elif size <= 2 * EDGE:
            shown.append(tuple(range(size)))
        else:
            shown.append((*range(EDGE), *range(size - EDGE, size)))
    return tuple(shown)


def corners_text(values: torch.Tensor, dims: Dims, shown: Picks) -> str:
    """Values of the corners, laid out like a nested list, with … for what was not read.

    Args:
        values: of shape (len(shown[0]), len(shown[1]), …).
        dims: the shape of the whole tensor.
        shown: which indices of each axis the values are of.
    """
    cells = iter(_formatted(values.flatten().tolist()))
    return _nested(
        [len(axis) for axis in shown],
        [len(axis) < size for axis, size in zip(shown, dims, strict=True)],
        cells.__next__,
    )


def _formatted(values: Sequence[Any]) -> list[str]:
    texts = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    width = max(map(len, texts), default=0)
    return [f"{text:>{width}}" for text in texts]


def _nested(counts: Sequence[int], cut: Sequence[bool], cell: Callable[[], str], level: int = 0) -> str:
    """Rows of cells in brackets; at most MAX_AXES levels deep and the single indices before them."""
    last = level == len(counts) - 1
    parts = [cell() if last else _nested(counts, cut, cell, level + 1) for _ in range(counts[level])]
    if cut[level]:
        parts.insert(EDGE if counts[level] > EDGE else counts[level], "…")
    between = ", " if last else ",\n" + " " * (level + 1)
    return f"[{between.join(parts)}]"

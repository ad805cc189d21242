"""compare(): how far two checkpoints lie apart, whatever their layouts and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from . import layouts
from .arguments import checked
from .checkpoint import Checkpoint
from .comparison import ABSENT, Comparison, Difference, compare_adapters
from .comparison import compare as compare_tensors
from .errors import LayoutError
from .opening import open as open_checkpoint
from .save.progress import reporter
from .tensor.wrapping import as_lazy


@checked
def compare(
    a: Any,
    b: Any,
    *,
    to: str | None = None,
    source: str | None = None,
    config: Mapping[str, Any] | None = None,
    values: bool = True,
    tolerance: float = 0.0,
    max_memory: int | str = "128MB",
    workers: int | None = None,
    progress: bool | Callable[[int, int], None] | None = None,
    names: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Compare two checkpoints: what is equal bit by bit, and how far the rest has moved.

    Where the layouts differ, B is compared as it looks in A's. Both sides are read once, tile by tile.

    >>> import torch, lazysd
    >>> weights = {"layers.0.w": torch.ones(4), "layers.1.w": torch.ones(4)}
    >>> moved = lazysd.compare(weights, weights | {"layers.1.w": torch.tensor([1.0, 1, 1, 3])})
    >>> [(row.name, row.magnitude.relative) for row in moved.rows()]
    [('layers.1.w', 1.0)]

    Args:
        a, b: a Checkpoint, a path, or a mapping of keys to tensors. What stands in shards that are missing (of a part
            that was opened with partial=True) is named as not compared, and the two are not equal.
        to, source: layout of A, and of B, if detection should not decide.
        config: sizes that config.json would give, e.g. {"num_experts": 128}.
        values: False compares keys, shapes and dtypes only and reads nothing.
        tolerance: elements that lie no further apart than this count as equal.
        max_memory: bytes for tiles and temporaries, or "128MB".
        workers: threads; None uses the CPUs there are, as far as `max_memory` allows.
        progress: called as progress(done_nbytes, total_nbytes), or True for a bar on stderr.
        names: what to call the two.

    Returns:
        A Comparison: `equal`, `differences`, `magnitudes` by key, `rows()` by layer, `print()`-able, HTML in notebooks.

    Raises:
        LayoutError: one side does not convert to the other's layout. MemoryBudgetError: `max_memory` is too little.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance has to be a number from 0 on, not {tolerance}")
    with reporter(progress, "compare") as report:
        first, second, layout = side_by_side(_checkpoint(a), _checkpoint(b), to, source, config)
        found = compare_tensors(first, second, names, workers, report, values, values, tolerance, max_memory)
        _set_apart(found, first, second, names)
        family = second.facts.family
        compare_adapters(found, in_layout(first, layout, family), in_layout(second, layout, family), names)
    return found


def _set_apart(found: Comparison, first: Checkpoint, second: Checkpoint, names: tuple[str, str]) -> None:
    """Of parts of checkpoints: what stands in a shard that is missing was not compared; it is not the other's alone."""
    for side, name, kind in ((first, names[0], "missing"), (second, names[1], "extra")):
        for absent in side.facts.absent:
            known = absent.homes
            lone = [one.key for one in found.differences if one.kind == kind and (known is None or one.key in known)]
            gone = dict.fromkeys([*lone, *(known or ())], f"in a shard that {name} lacks")
            told = {one.key for one in found.differences if one.kind == ABSENT}
            found.differences = [one for one in found.differences if one.key not in gone or one.kind == ABSENT]
            found.differences += [Difference(key, ABSENT, why) for key, why in gone.items() if key not in told]


def side_by_side(
    a: Checkpoint, b: Checkpoint, to: str | None, source: str | None, config: Mapping[str, Any] | None
) -> tuple[Checkpoint, Checkpoint, str | None]:
    """Both in A's layout, and its name."""
    layout, other = to or layout_of(a), source or layout_of(b)
    if layout and other and layouts.resolve(layout) != layouts.resolve(other):
        sizes = {**(a.config or b.config or {}), **(config or {})} or None
        b = b.convert(layout, source=source, config=sizes)
    return a, b, layout


def layout_of(checkpoint: Checkpoint) -> str | None:
    """The layout of a checkpoint; of a dense one, which opening does not name, what its keys and config.json show."""
    if checkpoint.layout is not None or checkpoint.adapter is not None:
        return checkpoint.layout
    try:
        found = layouts.find(checkpoint, checkpoint.config, checkpoint.family, dense=True).layout
    except LayoutError:
        return None
    return found.name if found is not None else None


def in_layout(checkpoint: Checkpoint, layout: str | None, family: str | None) -> Checkpoint:
    """The checkpoint with its layout stated, which evidence may not show; as it is where nothing is known of it."""
    if layout is None or checkpoint.adapter is None:
        return checkpoint
    found = layouts.get(layout, family)
    return checkpoint.like(dict(checkpoint), layout=found.name, family=found.family)


def _checkpoint(value: Any) -> Checkpoint:
    if isinstance(value, Checkpoint):
        return value
    if isinstance(value, (str, PathLike)):
        return open_checkpoint(value)
    if not isinstance(value, Mapping):
        raise TypeError(f"compare() takes checkpoints, paths or mappings of tensors, not {type(value).__name__}")
    return Checkpoint({key: as_lazy(tensor) for key, tensor in value.items()})


__all__ = ["compare", "in_layout", "layout_of", "side_by_side"]

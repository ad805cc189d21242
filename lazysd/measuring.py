"""What a checkpoint can say of its values: methods that read every tensor once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stats import CheckpointStats


class Measuring:
    """The part of Checkpoint that measures."""

    def stats(
        self, *globs: str, max_memory: int | str = "128MB", workers: int | None = None, progress: Any = None
    ) -> CheckpointStats:
        """What the values of each tensor are like: min, max, mean, std, zeros, NaN, quantiles, a histogram.

        Every tensor is read once, tile by tile, in `max_memory` bytes.

        >>> import lazysd
        >>> found = lazysd.open("tests/golden/qwen3_moe_tiny").stats("*.gate.weight")
        >>> len(found), found.not_finite
        (2, {})

        Args:
            globs: patterns of the keys that count; all by default.
            max_memory: bytes for tiles and temporaries, or "128MB".
            workers: threads; None uses the CPUs there are, as far as `max_memory` allows.
            progress: called as progress(done_nbytes, total_nbytes), or True for a bar on stderr.

        Returns:
            Stats by key; `print()`-able, a table in notebooks.
        """
        from .save.progress import reporter
        from .stats import stats_of

        whole: Any = self
        chosen = whole.select(*globs) if globs else whole
        with reporter(progress, "stats") as report:
            return stats_of(chosen, workers, max_memory, report)

"""What reads every tensor of a checkpoint once: measuring its values, and handing them out one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .arguments import checked

if TYPE_CHECKING:
    import torch

    from .stats import CheckpointStats


class Measuring:
    """The part of Checkpoint that reads."""

    @checked
    def stats(
        self,
        *globs: str,
        max_memory: int | str = "128MB",
        workers: int | None = None,
        progress: bool | Callable[[int, int], None] | None = None,
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

    @checked
    def iter_tensors(self, device: Any = "cpu", prefetch: int | str = "64MB") -> Iterator[tuple[str, torch.Tensor]]:
        """Read (key, tensor) pairs in the order of their bytes, a background thread reading ahead.

        Tensors are the caller's own memory. Read-ahead ones and the one handed out take at most `prefetch` bytes (or
        "64MB"), unless one alone is larger. What the thread raises is raised at the tensor whose read failed.
        """
        from .iterate import iterate

        whole: Any = self
        whole.facts.check_whole("stream")
        return iterate(whole, [file.path for file in whole.files], device, prefetch)

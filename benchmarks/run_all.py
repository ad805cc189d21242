"""Run every benchmark and write RESULTS.md beside them; or some of them, and print.

python benchmarks/run_all.py [--scratch /tmp] [--repeats 3] [--only convert load]
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import adapter
import convert
import load
import look
import lora_graph
import materialize
import merge
import on_demand
import open as opening
import ranks
from measure import machine
from synth import sparse_checkpoint

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
# Each gets a folder of its own, removed afterwards, and how often to repeat.
PARTS: dict[str, Callable[[Path, int], str]] = {
    "open": lambda folder, repeats: opening.run(sparse_checkpoint(folder / "235b")),
    "convert": lambda folder, repeats: convert.run(folder, repeats=repeats),
    "materialize": lambda folder, repeats: materialize.run(folder),
    "on_demand": lambda folder, repeats: on_demand.run(folder, repeats),
    "load": lambda folder, repeats: load.run(folder, repeats),
    "adapter": lambda folder, repeats: adapter.run(repeats=repeats),
    "ranks": lambda folder, repeats: ranks.run(folder, repeats=repeats),
    "lora_graph": lambda folder, repeats: lora_graph.run(repeats),
    "look": lambda folder, repeats: look.run(folder, repeats),
    "merge": lambda folder, repeats: merge.run(folder, repeats=repeats),
}
NOT_RUN = """### On a GPU

Not measured: no machine with one was at hand. The ring of pinned buffers, its streams and its order are tested on
the CPU through the same code (`tests/test_device.py`); the tests marked `gpu` run wherever there is a CUDA device.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure; takes about 16 GB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="print these instead of writing RESULTS.md")
    given = parser.parse_args()
    sections = []
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        described = machine(Path(scratch))
        for name in given.only or PARTS:
            folder = Path(scratch) / name
            folder.mkdir()
            sections.append(PARTS[name](folder, given.repeats))
            print(sections[-1], flush=True)
            shutil.rmtree(folder)
    if given.only:
        return
    head = (
        "# Results\n\n"
        f"Written by `python benchmarks/run_all.py` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}. "
        f"Both sides of every ratio ran in turns on one machine: {described}.\n\n"
        "The machine is virtual and shares its memory and disk with others: the same side may take twice as long a "
        "minute later. Ratios of medians say more than seconds; what a limit misses is marked.\n"
    )
    RESULTS.write_text("\n".join([head, *sections, NOT_RUN]))


if __name__ == "__main__":
    main()

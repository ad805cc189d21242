"""Run every benchmark, or the quick ones, or some of them; print what they say, or write it to a file.

python benchmarks/run_all.py [--scratch /tmp] [--repeats 3] [--quick | --only convert load] [--write results.md]
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

# Each gets a folder of its own, removed afterwards, and how often to repeat.
PARTS: dict[str, Callable[[Path, int], str]] = {
    "open": lambda folder, repeats: opening.run(sparse_checkpoint(folder / "235b")),
    "convert": lambda folder, repeats: convert.run(folder, repeats=repeats),
    "materialize": materialize.run,
    "on_demand": lambda folder, repeats: on_demand.run(folder, repeats),
    "load": lambda folder, repeats: load.run(folder, repeats),
    "adapter": lambda folder, repeats: adapter.run(repeats=repeats),
    "ranks": lambda folder, repeats: ranks.run(folder, repeats=repeats),
    "lora_graph": lambda folder, repeats: lora_graph.run(repeats),
    "look": lambda folder, repeats: look.run(folder, repeats),
    "merge": lambda folder, repeats: merge.run(folder, repeats=repeats),
}
QUICK = ("open", "adapter", "materialize", "lora_graph", "look")  # minutes altogether, and 5 GB of disk


def gpu() -> str:
    """What GPU there is. The parts above run on the CPU, whether or not there is one."""
    import torch

    if torch.cuda.is_available():
        return f"### On a GPU\n\n{torch.cuda.get_device_name()} is here, but no part measures it.\n"
    return "### On a GPU\n\nNot measured: torch finds none here.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure; takes about 16 GB")
    parser.add_argument("--repeats", type=int, default=3)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="what takes minutes: " + ", ".join(QUICK))
    which.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--write", type=Path, help="a file for all of it, in Markdown")
    given = parser.parse_args()
    sections = []
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        described = machine(Path(scratch))
        for name in given.only or (QUICK if given.quick else PARTS):
            folder = Path(scratch) / name
            folder.mkdir()
            sections.append(PARTS[name](folder, given.repeats))
            print(sections[-1], flush=True)
            shutil.rmtree(folder)
    sections.append(gpu())
    print(sections[-1])
    if given.write is None:
        return
    head = (
        "# Results\n\n"
        f"Written by `python benchmarks/run_all.py` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}. "
        f"Both sides of every ratio ran in turns on one machine: {described}.\n\n"
        "The machine is virtual and shares its memory and disk with others: the same side may take twice as long a "
        "minute later. Ratios of medians say more than seconds; what a limit misses is marked.\n"
    )
    given.write.write_text("\n".join([head, *sections]))


if __name__ == "__main__":
    main()

"""Run the benchmarks that need no other machine and write RESULTS.md beside them.

python benchmarks/run_all.py [--scratch /tmp] [--repeats 3]
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from pathlib import Path

import convert
import materialize
import open as opening
from measure import machine
from synth import sparse_checkpoint

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure; takes about 16 GB")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        folder = Path(scratch)
        parts = [
            "# Results\n",
            f"Written by `python benchmarks/run_all.py` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}. "
            f"Both sides of every ratio ran in turns on one machine: {machine(folder)}.\n",
            opening.run(sparse_checkpoint(folder / "235b")),
            materialize.run(folder / "one"),
            convert.run(folder / "four", repeats=given.repeats),
        ]
    RESULTS.write_text("\n".join(parts))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()

"""Random graphs along random paths under random constants, for as long as asked: `make fuzz SECONDS=600`.

MUTATIONS=100000 changes every kind of file so often before.

Prints what it has checked, and the smallest failing case there is. A round has a seed; `SEED=` begins with it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "properties")]
from file_mutations import KINDS, campaign  # noqa: E402 - a folder of tests is no package
from graph_paths import PATHS, check  # noqa: E402 - a folder of tests is no package

ROUND = 500  # graphs a seed


def run(number: int, paths: list[str], counts: Counter[str], shrink: bool) -> None:
    """One round."""
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)

    @seed(number)
    @settings(
        max_examples=ROUND,
        database=None,
        deadline=None,
        derandomize=False,
        phases=phases,
        report_multiple_bugs=False,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(paths), st.data())
    def holds(path: str, data: st.DataObject) -> None:
        counts[path] += 1
        check(path, data)

    holds()


def mutate_files(count: int, number: int) -> None:
    """So many mutations of each kind of file; exits where one shows a fault."""
    failures: list[str] = []
    for kind in KINDS if count else ():
        with tempfile.TemporaryDirectory() as folder:
            ended = campaign(kind, Path(folder) / kind, number, count, failures.append)
        print(f"{count} mutations of kind {kind}: {ended['accepted']} accepted, {ended['refused']} refused", flush=True)
    if failures:
        sys.exit("\n".join([f"{len(failures)} faults, of seed {number}; the first ones:", *failures[:20]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--graphs", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paths", nargs="*", default=list(PATHS), choices=list(PATHS))
    parser.add_argument("--mutations", type=int, default=0, help="of every kind of file, before the graphs")
    parser.add_argument("--no-shrink", action="store_true")
    args = parser.parse_args()
    mutate_files(args.mutations, args.seed)
    counts: Counter[str] = Counter()
    start, number = time.monotonic(), args.seed
    try:
        while time.monotonic() - start < args.seconds and counts.total() < args.graphs:
            run(number, args.paths, counts, not args.no_shrink)
            number += 1
    except BaseException:
        print(f"failed in the round of seed {number}, after {counts.total()} graphs: make fuzz SEED={number}")
        raise
    took = time.monotonic() - start
    shown = ", ".join(f"{path} {count}" for path, count in counts.most_common())
    print(f"{counts.total()} graphs in {took:.0f} s, none differs from eager torch ({shown})")


if __name__ == "__main__":
    main()

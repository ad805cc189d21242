"""Random graphs along random paths under random constants, for as long as asked: `make fuzz SECONDS=600`.

MUTATIONS=1000000 makes so many mutations of files before, of every kind as many as its share; KINDS="header dcp" of
these alone.

Prints what it has checked, and the smallest failing case there is. A round has a seed; `SEED=` begins with it.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "properties")]
from file_mutations import KINDS, SHARES, campaign  # noqa: E402 - a folder of tests is no package
from graph_paths import PATHS, check  # noqa: E402 - a folder of tests is no package
from mutators import TooMuch  # noqa: E402 - a folder of tests is no package

ROUND = 500  # graphs a seed
MUTATIONS = 1000  # a seed
CPU_SECONDS = 10
MORE_NBYTES = 2 << 30


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


def mutate_files(total: int, number: int, kinds: list[str]) -> None:
    """So many mutations of files, in rounds that have seeds of their own; exits where one shows a fault."""
    failures: list[str] = []
    shares = sum(SHARES[kind] for kind in kinds)
    for kind in kinds if total else ():
        left, seed, ended, started = -(-total * SHARES[kind] // shares), number, Counter[str](), time.monotonic()
        wanted = left
        while left:
            count = min(left, MUTATIONS)
            with tempfile.TemporaryDirectory() as folder:
                failed = partial(_note, failures, seed)
                ended.update(campaign(kind, Path(folder) / kind, seed, count, failed, bounded))
            left, seed = left - count, seed + 1
        shown = f"{ended['accepted']} accepted, {ended['refused']} refused, {wanted - ended.total()} wrong"
        print(
            f"{wanted} mutations of kind {kind} from seed {number}: {shown}, in {time.monotonic() - started:.0f} s",
            flush=True,
        )
    if failures:
        sys.exit(
            "\n".join([f"{len(failures)} faults; the first ones:", *(failure[:1000] for failure in failures[:20])])
        )


def _note(failures: list[str], seed: int, text: str) -> None:
    failures.append(f"seed {seed}: {text}")
    print(f"seed {seed}: {text[:300]}", flush=True)


@contextmanager
def bounded() -> Iterator[None]:
    """No mutation may take this much CPU time; memory has a limit for the whole process."""

    def stop(*_: object) -> None:
        raise TooMuch(f"more than {CPU_SECONDS} s of work")

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def limit_memory() -> None:
    """An allocation by a size that a file merely claims fails, rather than the machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_NBYTES, resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--graphs", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paths", nargs="*", default=list(PATHS), choices=list(PATHS))
    parser.add_argument("--mutations", type=int, default=0, help="of files, before the graphs")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--no-shrink", action="store_true")
    args = parser.parse_args()
    if args.mutations:
        limit_memory()
        mutate_files(args.mutations, args.seed, args.kinds)
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

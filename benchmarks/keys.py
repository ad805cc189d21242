"""What a key costs, in microseconds and bytes: opening, converting and planning 10^4, 10^5 and 10^6 keys (holes).

The other side is safetensors: every shard opened, every key asked its shape and dtype, and the answers kept.

python benchmarks/keys.py [--sizes 10000 100000 1000000]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import environment, machine, table, verdict
from synth import Shape, sparse_checkpoint

EXPERTS = 128
KEYS_A_LAYER = 3 * EXPERTS + 9
LIMIT_US, LIMIT_NBYTES = 30, 1500

CHILD = """
import json, sys, time
def anon():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024
stages = []
def stage(name, work):
    before, began = anon(), time.process_time()
    made = work()
    stages.append((name, time.process_time() - began, anon() - before))
    return made
"""
OURS = """
import lazysd, lazysd.save.plan
for _ in range(2):  # what the first conversion of a process reads and makes is not the keys'
    stages.clear()
    path = sys.argv[1 + _]
    ckpt = stage("open", lambda: lazysd.open(path))
    out = stage("convert", lambda: ckpt.convert("nemo"))
    plan = stage("plan", lambda: out.plan(max_memory="64GB"))
    back = stage("convert back", lambda: out.convert("hf"))
print(json.dumps([len(ckpt), stages]))
"""
THEIRS = """
import glob
from safetensors import safe_open
def listed():
    found = {}
    for path in sorted(glob.glob(sys.argv[2] + "/*.safetensors")):
        with safe_open(path, "np") as file:
            for key in file.keys():
                part = file.get_slice(key)
                found[key] = path, part.get_shape(), part.get_dtype()
    return found
found = stage("safe_open, every key and shape", listed)
print(json.dumps([len(found), stages]))
"""


def measured(code: str, *folders: Path) -> tuple[int, list[tuple[str, float, float]]]:
    """(keys, (stage, CPU seconds, growth of RssAnon) of each) of a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD + code, *map(str, folders)],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"measured process failed:\n{done.stderr}")
    found: tuple[int, list[tuple[str, float, float]]] = json.loads(done.stdout)
    return found


def run(sizes: list[int]) -> str:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        small = sparse_checkpoint(Path(scratch) / "small", Shape(2, EXPERTS, 64, 32, vocab=1000), shards=2)
        for size in sizes:
            shape = Shape(max(2, round(size / KEYS_A_LAYER)), EXPERTS, hidden=64, inner=32, vocab=1000)
            folder = sparse_checkpoint(Path(scratch) / str(size), shape, shards=max(2, size // 10_000))
            keys, ours = measured(OURS, small, folder)
            _, theirs = measured(THEIRS, small, folder)
            for name, seconds, nbytes in (*ours, *theirs):
                rows.append(
                    (f"{keys:,}", name, f"{seconds:.2f}", f"{1e6 * seconds / keys:.1f}", f"{nbytes / keys:.0f}")
                )
            micros, each = (1e6 * sum(one[1] for one in ours[:3]) / keys, sum(one[2] for one in ours[:3]) / keys)
            reached = verdict(max(micros / LIMIT_US, each / LIMIT_NBYTES), 1)
            rows.append((f"{keys:,}", f"open, convert and plan; {reached}", "", f"{micros:.1f}", f"{each:.0f}"))
    title = f"What a key costs (at most {LIMIT_US} us and {LIMIT_NBYTES} bytes)"
    return table(title, ("keys", "what", "CPU seconds", "us a key", "bytes a key"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    given = parser.parse_args()
    print(machine(Path(tempfile.gettempdir())))
    print(run(given.sizes))


if __name__ == "__main__":
    main()

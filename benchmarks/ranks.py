"""Two processes against one with two workers, on the same conversion; and how much each rank of N grows by.

python benchmarks/ranks.py [--scratch /tmp] [--layers 1] [--experts 128]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import CHILD, environment, machine, megabytes, table, verdict
from synth import QWEN3_30B, dense_checkpoint

BUDGET = 128 * 10**6

# One process of n; the clock starts when all of them have imported what they need.
SETUP = """
import lazysd, lazysd.distributed, lazysd.save.run, torch.distributed as dist
src, dst, store, rank, ranks = sys.argv[1:6]
rank, ranks = int(rank), int(ranks)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=ranks)
mesh = dist.init_device_mesh("cpu", (ranks,), mesh_dim_names=("ep",))
dist.barrier()
"""

SAVE = (
    SETUP
    + """
ckpt = lazysd.open(src).convert("nemo")
began = begin()
if ranks == 1:
    ckpt.save(dst, max_shard_size="300MB", workers=2)
else:
    lazysd.distributed.save(ckpt, dst, max_shard_size="300MB", workers_per_rank=1)
end(began)
"""
)

HOLD = (
    SETUP
    + """
began = begin()
native = lazysd.open(src).convert("nemo", mesh=mesh)
held = {key: node.materialize() for key, node in native.items() if hasattr(node, "local")}
end(began)
"""
)


def crew(code: str, ranks: int, src: Path, scratch: Path) -> list[dict[str, float]]:
    """What each of so many processes measures."""
    dst, store = scratch / "out", scratch / "store"
    shutil.rmtree(dst, ignore_errors=True)
    store.unlink(missing_ok=True)
    text = CHILD.format(threads=max(1, 2 // ranks)) + code
    given = [str(value) for value in (src, dst, store)]
    command = [[sys.executable, "-c", text, *given, str(rank), str(ranks)] for rank in range(ranks)]
    running = [subprocess.Popen(one, stdout=subprocess.PIPE, text=True, env=environment()) for one in command]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("a measured process failed, see above")
    return [json.loads(out.splitlines()[-1]) for out in printed]


def run(scratch: Path, layers: int = 1, repeats: int = 3, experts: int = QWEN3_30B.experts) -> str:
    """Convert hf to nemo with one process and with two; materialise the experts on a mesh of two and three ranks."""
    src = dense_checkpoint(scratch / "hf", layers, QWEN3_30B._replace(experts=experts), shards=2)
    expert = 3 * QWEN3_30B.hidden * QWEN3_30B.inner * 2
    times: dict[int, list[float]] = {1: [], 2: []}
    grown: dict[int, list[float]] = {1: [], 2: []}
    for number in range(repeats + 1):
        for ranks in times:
            found = crew(SAVE, ranks, src, scratch)
            if number:
                times[ranks].append(max(one["seconds"] for one in found))
                grown[ranks].append(max(one["hwm_growth"] for one in found))
    took = {ranks: statistics.median(found) for ranks, found in times.items()}
    rows: list[tuple[object, ...]] = [
        ("convert, one process with two workers", f"{took[1]:.2f} s", "", ""),
        ("convert, two processes", f"{took[2]:.2f} s", f"{took[1]:.2f} s", verdict(took[2], took[1])),
        ("its growth, the larger rank", megabytes(max(grown[2])), megabytes(BUDGET), verdict(max(grown[2]), BUDGET)),
    ]
    for ranks in (2, 3):
        peak = max(one["hwm_growth"] for one in crew(HOLD, ranks, src, scratch))
        limit = layers * -(-experts // ranks) * expert + BUDGET
        rows.append((f"experts of a rank of {ranks}, growth", megabytes(peak), f"share and budget, {megabytes(limit)}",
                     verdict(peak, limit)))  # fmt: skip
    return table(
        f"Ranks: {layers} layer of Qwen3-30B-A3B with {experts} experts, hf to nemo",
        ("what", "measured", "limit", "reached"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="where to make the files: 2.5 GB a layer")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--experts", type=int, default=QWEN3_30B.experts)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        print(machine(Path(scratch)))
        print(run(Path(scratch), given.layers, given.repeats, given.experts))


if __name__ == "__main__":
    main()

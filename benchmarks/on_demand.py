"""Tensors on demand: the first expert of a 470 GB checkpoint, one warm expert, one plain tensor.

python benchmarks/on_demand.py [--scratch /tmp] [--small]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import alternate, environment, machine, table, verdict
from synth import QWEN3_30B, QWEN3_235B, Shape, dense_checkpoint, sparse_checkpoint

FIRST = """
import sys, time, torch
began = time.perf_counter()
import lazysd
ckpt = lazysd.open(sys.argv[1]).convert("nemo")
expert = ckpt["model.layers.0.mlp.experts.gate_and_up_projs"][0].materialize()
print(time.perf_counter() - began, expert.nbytes)
"""
PLAIN_KEYS = 32


def first_expert(folder: Path, repeats: int) -> tuple[float, int]:
    """(median seconds, bytes): open, convert, slice and materialise in a process that has imported torch."""
    found = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", FIRST, str(folder)], capture_output=True, text=True, check=True, env=environment()
        )
        seconds, nbytes = done.stdout.split()
        found.append(float(seconds))
    return statistics.median(found), int(nbytes)


def warm_slice(folder: Path, repeats: int) -> tuple[dict[str, float], int]:
    """One expert of a grouped tensor from a warm file, against preadv of the same bytes and a transpose."""
    import torch

    import lazysd

    ckpt = lazysd.open(folder)
    key = "model.layers.0.mlp.experts."
    node = ckpt.convert("nemo")[key + "gate_and_up_projs"]
    parts = [ckpt[f"{key}7.{name}_proj.weight"] for name in ("gate", "up")]
    places = [part.reads()[0] for part in parts]
    fd = os.open(places[0][0], os.O_RDONLY)
    inner, hidden = parts[0].shape
    buffer = torch.empty(2 * inner, hidden, dtype=torch.bfloat16)  # reused, as lazysd reuses its own
    held = memoryview(buffer.view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]

    def plain() -> torch.Tensor:
        at = 0
        for _, offset, nbytes in places:
            assert os.preadv(fd, [held[at : at + nbytes]], offset) == nbytes
            at += nbytes
        return buffer.t().contiguous()

    def ours() -> torch.Tensor:
        return node[7].materialize()

    assert torch.equal(ours().view(torch.int16), plain().view(torch.int16))
    took = alternate({"lazysd": ours, "preadv and transpose": plain}, repeats)
    os.close(fd)
    return took, ours().nbytes


def plain_tensors(folder: Path, repeats: int) -> dict[str, float]:
    """Seconds a tensor, each touched page by page, from handles that have touched nothing yet."""
    import time

    from safetensors import safe_open

    import lazysd

    path = folder / "model.safetensors"
    keys = [f"model.layers.0.mlp.experts.{e}.up_proj.weight" for e in range(PLAIN_KEYS)]
    found: dict[str, list[float]] = {"lazysd, map": [], "safe_open": [], "lazysd, pread": []}

    def touch(tensor: object) -> None:
        tensor.view(-1)[::2048].sum()  # type: ignore[attr-defined]

    def timed(get: object) -> float:
        started = time.perf_counter()
        for key in keys:
            touch(get(key))  # type: ignore[operator]
        return (time.perf_counter() - started) / len(keys)

    for _ in range(repeats + 1):
        with safe_open(path, "pt") as file:
            found["safe_open"].append(timed(file.get_tensor))
        for io, name in (("mmap", "lazysd, map"), ("pread", "lazysd, pread")):
            with lazysd.open(path, io=io) as ckpt:
                found[name].append(timed(lambda key, ckpt=ckpt: ckpt[key].materialize()))
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def run(
    scratch: Path, repeats: int = 5, sparse: Path | None = None, shape: Shape = QWEN3_30B, large: Shape = QWEN3_235B
) -> str:
    sparse = sparse or sparse_checkpoint(scratch / "sparse", large, min(118, large.layers))
    dense = dense_checkpoint(scratch / "hf-1", 1, shape, shards=1)
    took, nbytes = first_expert(sparse, repeats)
    rows: list[tuple[object, ...]] = [
        (f"first expert ({nbytes / 1e6:.0f} MB), cold process", f"{took:.3f} s", "1.500 s", verdict(took, 1.5))
    ]
    warm, nbytes = warm_slice(dense, 20 * repeats)
    ours, theirs = warm["lazysd"], warm["preadv and transpose"]
    rows += [
        (f"one expert ({nbytes / 1e6:.1f} MB), warm", f"{ours * 1e3:.2f} ms", "2.00 ms", verdict(ours, 0.002)),
        ("preadv and transpose of the same bytes", f"{theirs * 1e3:.2f} ms", "", ""),
        ("lazysd / preadv and transpose", f"{ours / theirs:.2f}", "1.50", verdict(ours / theirs, 1.5)),
    ]
    plain = plain_tensors(dense, repeats)
    ratio = plain["lazysd, map"] / plain["safe_open"]
    rows += [(f"a plain tensor and a touch, {name}", f"{took * 1e3:.3f} ms", "", "") for name, took in plain.items()]
    rows.append(("lazysd by map / safe_open", f"{ratio:.2f}", "1.10", verdict(ratio, 1.1)))
    return table("Tensors on demand, to the CPU", ("what", "time or ratio", "limit", "reached"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="where to make the files: 1.3 GB and holes")
    parser.add_argument("--small", action="store_true", help="a quarter of the experts, to try the script")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        print(machine(Path(scratch)))
        shape = QWEN3_30B._replace(experts=32) if given.small else QWEN3_30B
        print(run(Path(scratch), shape=shape))


if __name__ == "__main__":
    main()

"""Converting a Qwen3-30B-shaped checkpoint, against a plain script and against copying the files.

    python benchmarks/convert.py [--scratch /tmp] [--layers 4] [--repeats 3]

Each side writes to the same disk, ends with its data on disk (sync), and starts from a warm page cache. Memory is the
growth of VmHWM of a fresh process over its size with torch imported.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import child, environment, machine, megabytes, table, verdict
from synth import dense_checkpoint

# What people write today: everything in memory, then cat, stack, transpose, save.
TO_NEMO = """
import glob, os, re, shutil
from safetensors.torch import load_file, save_file
src, dst = sys.argv[1:3]
began = begin()
os.makedirs(dst)
tensors = {}
for path in sorted(glob.glob(src + "/*.safetensors")):
    tensors.update(load_file(path))
experts = 1 + max(int(m[1]) for key in tensors if (m := re.search(r"experts\\.(\\d+)\\.", key)))
heads = {key.split("experts.")[0] + "experts." for key in tensors if ".experts." in key}
for head in sorted(heads):
    pairs = [torch.cat([tensors.pop(f"{head}{e}.gate_proj.weight"), tensors.pop(f"{head}{e}.up_proj.weight")])
             for e in range(experts)]
    tensors[head + "gate_and_up_projs"] = torch.stack(pairs).transpose(1, 2).contiguous()
    downs = [tensors.pop(f"{head}{e}.down_proj.weight") for e in range(experts)]
    tensors[head + "down_projs"] = torch.stack(downs).transpose(1, 2).contiguous()
save_file(tensors, dst + "/model.safetensors", metadata={"format": "pt"})
os.sync()
end(began)
"""

TO_HF = """
import glob, os
from safetensors.torch import load_file, save_file
src, dst = sys.argv[1:3]
began = begin()
os.makedirs(dst)
tensors = {}
for path in sorted(glob.glob(src + "/*.safetensors")):
    tensors.update(load_file(path))
for key in [key for key in tensors if key.endswith("gate_and_up_projs")]:
    head, wide = key.removesuffix("gate_and_up_projs"), tensors.pop(key).transpose(1, 2)
    down = tensors.pop(head + "down_projs").transpose(1, 2)
    inner = wide.shape[1] // 2
    for e in range(len(wide)):
        tensors[f"{head}{e}.gate_proj.weight"] = wide[e, :inner].contiguous()
        tensors[f"{head}{e}.up_proj.weight"] = wide[e, inner:].contiguous()
        tensors[f"{head}{e}.down_proj.weight"] = down[e].contiguous()
save_file(tensors, dst + "/model.safetensors", metadata={"format": "pt"})
os.sync()
end(began)
"""

OURS = """
import os
began = begin()
import lazysd
lazysd.open(sys.argv[1], io="pread").convert(sys.argv[3]).save(sys.argv[2], workers=2)
os.sync()
end(began)
"""


def copy(src: Path, dst: Path) -> dict[str, float]:
    """cp -r, then sync."""
    started = time.perf_counter()
    subprocess.run(["cp", "-r", src, dst], check=True)
    os.sync()
    return {"seconds": time.perf_counter() - started, "hwm_growth": 0.0}


def warm(folder: Path) -> None:
    """Bring the source into the page cache, so that every side reads from memory."""
    subprocess.run(f"cat {folder}/*.safetensors > /dev/null", shell=True, check=True)


def race(src: Path, scratch: Path, script: str, to: str, repeats: int) -> dict[str, dict[str, float]]:
    """Every side in turn; the median of each."""
    sides: dict[str, Any] = {
        "lazysd": lambda dst: child(OURS, src, dst, to),
        "cp -r; sync": lambda dst: copy(src, dst),
        "plain script": lambda dst: child(script, src, dst),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            warm(src)
            dst = scratch / "out"
            found[name].append(run(dst))
            shutil.rmtree(dst)
            os.sync()
    return {
        name: {field: statistics.median(one[field] for one in runs) for field in ("seconds", "hwm_growth")}
        for name, runs in found.items()
    }


def growth(src: Path, scratch: Path, to: str) -> float:
    """VmHWM growth of one conversion."""
    found = child(OURS, src, scratch / "grown", to)["hwm_growth"]
    shutil.rmtree(scratch / "grown")
    return found


def run(scratch: Path, layers: int = 4, repeats: int = 3) -> str:
    rows: list[tuple[object, ...]] = []
    four = dense_checkpoint(scratch / "hf", layers)
    one = dense_checkpoint(scratch / "hf-1", 1, shards=1)
    nbytes = sum(path.stat().st_size for path in four.glob("*.safetensors"))
    native, native_one = scratch / "nemo", scratch / "nemo-1"
    for src, dst in ((four, native), (one, native_one)):
        command = [sys.executable, "-m", "lazysd", "convert", src, dst, "--to", "nemo", "-q"]
        subprocess.run(list(map(str, command)), check=True, env=environment(), stdout=subprocess.DEVNULL)
    for name, src, small, script, to in (
        ("hf -> nemo", four, one, TO_NEMO, "nemo"),
        ("nemo -> hf", native, native_one, TO_HF, "hf"),
    ):
        found = race(src, scratch, script, to, repeats)
        ours, cp, plain = (found[side]["seconds"] for side in ("lazysd", "cp -r; sync", "plain script"))
        for side, took in found.items():
            held = megabytes(took["hwm_growth"]) if side != "cp -r; sync" else ""
            rows.append(
                (name, side, f"{took['seconds']:.2f} s", f"{nbytes / took['seconds'] / 1e9:.2f} GB/s", held, "")
            )
        rows.append((name, "plain script / lazysd", f"{plain / ours:.2f}", "at least 5", "", verdict(5, plain / ours)))
        rows.append((name, "lazysd / cp", f"{ours / cp:.2f}", "at most 1.3", "", verdict(ours / cp, 1.3)))
        held = [found["lazysd"]["hwm_growth"], growth(small, scratch, to)]
        for count, peak in zip((layers, 1), held, strict=True):
            rows.append((name, f"memory, layers={count}", "", "at most 128 MB", megabytes(peak), verdict(peak, 128e6)))
    return table(
        f"Converting {nbytes / 1e9:.1f} GB, {layers} layers of Qwen3-30B-A3B, two workers",
        ("direction", "side", "time or ratio", "rate or limit", "VmHWM growth", "reached"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure; takes about 16 GB")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        print(machine(Path(scratch)))
        print(run(Path(scratch), given.layers, given.repeats))


if __name__ == "__main__":
    main()

"""Commands from the shell beside the system's own: convert against cp and a direct write, verify against cat.

python benchmarks/shell.py [--scratch /tmp] [--layers 2] [--repeats 3] [--plot shell.svg]

Sides take turns; sources are in the page cache, every copy ends on the disk. A plot shows this run's own numbers.
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

from measure import environment, machine, table, verdict
from synth import dense_checkpoint

Took = tuple[float, float]  # wall and CPU seconds

LIMITS = (
    ("convert to nemo / cp -r; sync", "convert to nemo", "cp -r; sync", 0.8),
    ("convert to hf / cp -r; sync", "convert to hf", "cp -r; sync", 0.8),
    ("convert to nemo / direct write", "convert to nemo", "direct write", 1.5),
)


def timed(command: str) -> Took:
    """A command of the shell; ValueError where it fails."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(command, shell=True, check=True, env=environment(), stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, os.times()
    return seconds, after.children_user + after.children_system - before.children_user - before.children_system


def sides(hf: Path, nemo: Path, out: Path) -> dict[str, str]:
    """What takes turns, each from a source to a folder that is not there yet."""
    lazysd = f"{sys.executable} -m lazysd"
    direct = (
        f"mkdir {out}; for f in {hf}/*.safetensors; do dd if=$f of={out}/x bs=8M oflag=direct conv=notrunc status=none"
    )
    return {
        "convert to nemo": f"{lazysd} convert {hf} {out} --to nemo -q",
        "convert to hf": f"{lazysd} convert {nemo} {out} --to hf -q",
        "cp -r; sync": f"cp -r {hf} {out}; sync",
        "direct write": f"{direct} iflag=fullblock || exit 1; rm {out}/x; done",
        "verify": f"{lazysd} verify {nemo}",
        "cat": f"cat {nemo}/*.safetensors > /dev/null",
    }


def measure(scratch: Path, layers: int, repeats: int) -> tuple[dict[str, Took], int]:
    """The medians of every side, and the bytes of the source."""
    hf, nemo, out = dense_checkpoint(scratch / "hf", layers), scratch / "nemo", scratch / "out"
    subprocess.run(sides(hf, nemo, nemo)["convert to nemo"], shell=True, check=True, env=environment())
    found: dict[str, list[Took]] = {name: [] for name in sides(hf, nemo, out)}
    for _ in range(repeats):
        for name, command in sides(hf, nemo, out).items():
            timed(f"cat {nemo if name in ('convert to hf', 'verify', 'cat') else hf}/*.safetensors > /dev/null; sync")
            found[name].append(timed(command))
            shutil.rmtree(out, ignore_errors=True)
    nbytes = sum(path.stat().st_size for path in hf.glob("*.safetensors"))
    medians = {}
    for name, runs in found.items():
        wall, cpu = zip(*runs, strict=True)
        medians[name] = statistics.median(wall), statistics.median(cpu)
    return medians, nbytes


def run(scratch: Path, layers: int = 2, repeats: int = 3, plot: Path | None = None) -> str:
    took, nbytes = measure(scratch, layers, repeats)
    title = f"From the shell, {nbytes / 1e9:.1f} GB ({layers} layers of Qwen3-30B-A3B), medians of {repeats}"
    rows: list[tuple[object, ...]] = [
        (name, f"{wall:.2f} s", f"{cpu / nbytes * 1e9:.2f} CPU s/GB", "") for name, (wall, cpu) in took.items()
    ]
    for what, ours, other, limit in LIMITS:
        ratio = took[ours][0] / took[other][0]
        rows.append((what, f"{ratio:.2f}", f"at most {limit}", verdict(ratio, limit)))
    if plot is not None:
        draw(took, title, plot)
    return table(title, ("what", "time or ratio", "CPU or limit", "reached"), rows)


def draw(took: dict[str, Took], title: str, path: Path) -> None:
    """Bars of wall and CPU seconds. matplotlib comes with the extra `notebooks`."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    for at, (name, (wall, cpu)) in enumerate(reversed(took.items())):
        colour = "tab:blue" if name.startswith(("convert", "verify")) else "tab:gray"
        axes.barh(at + 0.2, wall, 0.36, color=colour)
        axes.barh(at - 0.2, cpu, 0.36, color=colour, alpha=0.45)
    axes.set_yticks(range(len(took)), list(reversed(took)))
    axes.set_xlabel("seconds: wall (dark), CPU (light)")
    axes.set_title(title, fontsize=9)
    figure.savefig(path, format="svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure; takes 3.8 GB a layer")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="an SVG of this run's numbers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        print(machine(Path(scratch)))
        print(run(Path(scratch), given.layers, given.repeats, given.plot))


if __name__ == "__main__":
    main()

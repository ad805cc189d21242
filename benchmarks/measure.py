"""What the benchmarks share: alternating medians, peak memory of a child process, the machine, tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

REPEATS = 5

# Prefix of every measured child: VmHWM starts again at the present size, so imports before it do not count.
CHILD = """
import json, sys, time
import torch
torch.set_num_threads({threads})
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
def begin():
    open("/proc/self/clear_refs", "w").write("5")
    return status("VmRSS"), status("RssAnon"), time.perf_counter()
def end(began):
    rss, anon, at = began
    print(json.dumps({{"seconds": time.perf_counter() - at, "hwm_growth": status("VmHWM") - rss,
                       "anon_growth": status("RssAnon") - anon}}))
"""


def alternate(sides: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each side: one warm-up each, then A B A B …, so that both see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def child(code: str, *args: object, threads: int = 2) -> dict[str, float]:
    """Run code between begin() and end() in a fresh interpreter with torch imported; seconds and memory growth."""
    text = CHILD.format(threads=threads) + code
    done = subprocess.run(
        [sys.executable, "-c", text, *map(str, args)], capture_output=True, text=True, check=False, env=environment()
    )
    if done.returncode:
        raise RuntimeError(f"measured process failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def environment() -> dict[str, str]:
    """The environment of child processes: this checkout first on the path, bytecode kept as in a wheel."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "HF_HUB_OFFLINE": "1"}


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table under a heading."""
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |"]
    lines.append("|" + "---|" * len(lines[-1].strip("|").split("|")))
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def verdict(value: float, limit: float) -> str:
    """Whether a value is at most its limit."""
    return "yes" if value <= limit else "**no**"


def machine(folder: Path) -> str:
    """One paragraph: CPU, cores, memory, kernel, file system, versions."""
    import safetensors
    import torch

    cpu = _field("/proc/cpuinfo", "model name") or platform.processor()
    total = int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) * 1024
    found = subprocess.run(["df", "--output=fstype,source", folder], capture_output=True, text=True, check=False)
    system = found.stdout.splitlines()[-1].split()[0] if found.returncode == 0 else "unknown"
    return (
        f"{cpu}, {len(os.sched_getaffinity(0))} cores, {total / 1e9:.0f} GB, Linux {platform.release()}, {system}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, safetensors {safetensors.__version__}"
    )


def _field(path: str, name: str) -> str | None:
    with open(path) as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith(name)), None)


def megabytes(nbytes: float) -> str:
    """Bytes for people."""
    return f"{nbytes / 1e6:.0f} MB"

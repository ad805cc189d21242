"""What a command costs beside its work: start-up against `python -c "import torch"`, memory against a bare Python.

python benchmarks/light.py [--layers 2]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import environment, machine, megabytes, table, verdict
from synth import QWEN3_30B, _header, dense_checkpoint

REPEATS = 7
MAX_MEMORY = 64_000_000


def adapter(folder: Path) -> Path:
    """A LoRA of 1 MB as PEFT writes it, without a config.json beside it: every family's layouts are tried."""
    at = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"
    part = [
        (at.format(layer, name, letter), (8, 2048) if letter == "A" else (512, 8))
        for layer in range(12)
        for name in "qv"
        for letter in "AB"
    ]
    head, nbytes = _header(part, "BF16")
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(head + bytes(nbytes))
    config = '{"peft_type": "LORA", "peft_version": "0.19.1", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}'
    (folder / "adapter_config.json").write_text(config)
    return folder


# Starts a process and waits for it: a peak counts what was resident before exec, so whoever starts one has to be small.
SMALL = """
import os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ,
    file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
began = os.times().elapsed
_, status, usage = os.wait4(pid, 0)
assert not status, sys.argv
print(os.times().elapsed - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
"""


def child(*command: object) -> tuple[float, float, float]:
    """(seconds, CPU seconds, peak resident bytes) of a process."""
    words = [sys.executable, "-c", SMALL, *map(str, command)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment())
    seconds, cpu, peak = map(float, done.stdout.split())
    return seconds, cpu, peak


def start_up(folder: Path) -> str:
    src, dst = adapter(folder / "adapter"), folder / "dst"
    sides: dict[str, tuple[object, ...]] = {
        "a bare Python": ("-c", ""),
        "import numpy": ("-c", "import numpy"),
        "import torch": ("-c", "import torch"),
        "import lazysd": ("-c", "import lazysd"),
        "lazysd --help": ("-m", "lazysd", "--help"),
        "lazysd convert, a LoRA of 1 MB, cast to float32": ("-m", "lazysd", "convert", src, dst, "--dtype", "f32"),
        "lazysd convert, a LoRA of 1 MB, as it is": ("-m", "lazysd", "convert", src, dst),
    }
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for _ in range(REPEATS):
        for name, command in sides.items():
            shutil.rmtree(dst, ignore_errors=True)
            runs[name].append(child(*command))
    found = {name: [statistics.median(column) for column in zip(*seen, strict=True)] for name, seen in runs.items()}
    bare, torch = found["a bare Python"], found["import torch"]
    rows = [
        (name, f"{seconds:.3f}", f"{cpu:.3f}", f"{seconds / torch[0]:.2f}", megabytes(peak - bare[2]))
        for name, (seconds, cpu, peak) in found.items()
    ]
    head = ("process", "seconds", "CPU seconds", "seconds / import torch", "peak above a bare Python")
    return table(f"Start-up, medians of {REPEATS}", head, rows)


def memory(folder: Path, layers: int) -> str:
    src, there, back = dense_checkpoint(folder / "src", layers, QWEN3_30B), folder / "there", folder / "back"
    _, _, bare = child("-c", "")
    rows = []
    for name, command in {
        "hf -> nemo": (src, there, "--to", "nemo"),
        "nemo -> hf": (there, back, "--to", "hf"),
        "hf, other shards": (src, folder / "shards", "--max-shard-size", "500MB"),
    }.items():
        seconds, cpu, peak = child("-m", "lazysd", "convert", *command, "--max-memory", MAX_MEMORY, "-q")
        above = peak - bare
        rows.append((name, f"{seconds:.2f}", f"{cpu:.2f}", megabytes(above), "100 MB", verdict(above, 100e6)))
    title = f"Peak of `lazysd convert --max-memory 64MB` above a bare Python, {layers} layers of Qwen3-30B-A3B"
    return table(title, ("direction", "seconds", "CPU seconds", "peak above", "at most", "reached"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=2, help="of 1.25 GB each")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(machine(Path(scratch)))
        print(start_up(Path(scratch)))
        print(memory(Path(scratch), given.layers))


if __name__ == "__main__":
    main()

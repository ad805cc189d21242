"""Whole jobs beside what others use for them, each side a process of its own: wall, CPU, peak memory, bytes written.

    make bench-peers          (an environment of its own, with the peers in it)
    python benchmarks/peers.py [--scratch /tmp] [--layers 2] [--repeats 3] [--workers 1 2] [--only ...]

Every side ends with its data on disk (sync) and starts from a warm page cache; they run in turns. Peak memory is that
of the whole process, interpreter and imports included. A peer that is not installed is listed as such.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from convert import TO_NEMO
from measure import CHILD, environment, machine, megabytes, table
from synth import QWEN3_30B, dense_checkpoint

# One layer at a time, each into a file of its own: what a careful author writes who has little memory.
LAYERWISE = """
import os, re
from collections import defaultdict
from safetensors import safe_open
from safetensors.torch import save_file
src, dst = sys.argv[1:3]
began = begin()
os.makedirs(dst)
files = [safe_open(os.path.join(src, name), "pt") for name in sorted(os.listdir(src)) if name.endswith(".safetensors")]
at = {key: file for file in files for key in file.keys()}
layers = defaultdict(list)
for key in at:
    found = re.search(r"layers[.](\\d+)[.]", key)
    layers[int(found[1]) if found else -1].append(key)
weight_map, total = {}, 0
for layer, keys in sorted(layers.items()):
    out, head = {}, f"model.layers.{layer}.mlp.experts."
    experts = {int(key[len(head):].split(".")[0]) for key in keys if key.startswith(head)}
    if experts:
        get = lambda e, name: at[f"{head}{e}.{name}.weight"].get_tensor(f"{head}{e}.{name}.weight")
        wide = down = None
        for e in sorted(experts):
            gate, up, one = get(e, "gate_proj"), get(e, "up_proj"), get(e, "down_proj")
            if wide is None:
                inner, hidden = gate.shape
                wide = torch.empty(len(experts), hidden, 2 * inner, dtype=gate.dtype)
                down = torch.empty(len(experts), inner, hidden, dtype=one.dtype)
            wide[e, :, :inner], wide[e, :, inner:], down[e] = gate.t(), up.t(), one.t()
        out = {head + "gate_and_up_projs": wide, head + "down_projs": down}
    out |= {key: at[key].get_tensor(key) for key in keys if not key.startswith(head)}
    name = f"layer-{layer + 1:05}.safetensors"
    save_file(out, os.path.join(dst, name), metadata={"format": "pt"})
    weight_map |= dict.fromkeys(out, name)
    total += sum(one.nbytes for one in out.values())
with open(os.path.join(dst, "model.safetensors.index.json"), "w") as file:
    json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, file)
os.sync()
"""

NEMO = """
import glob, os
from types import SimpleNamespace
from safetensors.torch import load_file, save_file
from nemo_automodel.components.models.qwen3_moe.state_dict_adapter import Qwen3MoeStateDictAdapter
src, dst = sys.argv[1:3]
config = json.load(open(src + "/config.json"))
moe = SimpleNamespace(n_routed_experts=config["num_experts"], moe_inter_dim=config["moe_intermediate_size"],
                      dim=config["hidden_size"], expert_activation="swiglu", expert_bias=False)
adapter = Qwen3MoeStateDictAdapter(None, moe, SimpleNamespace(dispatcher="torch", experts="torch"), torch.bfloat16)
os.makedirs(dst)
tensors = {}
for path in sorted(glob.glob(src + "/*.safetensors")):
    tensors |= load_file(path)
save_file({key: one.contiguous() for key, one in adapter.from_hf(tensors).items()}, dst + "/model.safetensors")
os.sync()
"""

MERGEKIT = """
import os
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
src, dst = sys.argv[1:3]
plan = {"merge_method": "passthrough", "models": [{"model": src}], "dtype": "bfloat16"}
options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
run_merge(MergeConfiguration.model_validate(plan), dst, options)
os.sync()
"""

DCP_TO_TORCH = """
import os
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
src, dst = sys.argv[1:3]
os.makedirs(dst)
dcp_to_torch_save(src, dst + "/model.pt")
os.sync()
"""

COMPRESSED = """
import os
from compressed_tensors.entrypoints.convert import FP8BlockDequantizer, convert_checkpoint
src, dst = sys.argv[1:3]
convert_checkpoint(src, dst, FP8BlockDequantizer.from_pretrained(src), max_workers=int(sys.argv[3]))
os.sync()
"""

LOAD = {
    "lazysd, materialize": """
import lazysd
tensors = {key: lazy.materialize() for key, lazy in lazysd.open(sys.argv[1], io="pread").items()}
""",
    "safetensors load_file": """
import glob
from safetensors.torch import load_file
tensors = {}
for path in sorted(glob.glob(sys.argv[1] + "/*.safetensors")): tensors |= load_file(path)
for one in tensors.values(): one.view(torch.uint8).flatten()[::4096].sum()
""",
    "fastsafetensors": """
import glob
from fastsafetensors import SafeTensorsFileLoader, SingleGroup
loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
loader.add_filenames({0: sorted(glob.glob(sys.argv[1] + "/*.safetensors"))})
held = loader.copy_files_to_device()
tensors = {key: held.get_tensor(key) for key in held.key_to_rank_lidx}
""",
    "Run:ai streamer": """
import glob
from runai_model_streamer import SafetensorsStreamer
tensors = {}
with SafetensorsStreamer() as streamer:
    streamer.stream_files(sorted(glob.glob(sys.argv[1] + "/*.safetensors")))
    for key, tensor in streamer.get_tensors(): tensors[key] = tensor.clone()
""",
}
PACKAGES = {
    "nemo-automodel": "nemo_automodel",
    "mergekit": "mergekit",
    "compressed-tensors": "compressed_tensors",
    "fastsafetensors": "fastsafetensors",
    "runai-model-streamer": "runai_model_streamer",
}
NEEDS = PACKAGES | {"Run:ai streamer": "runai_model_streamer"}
Side = Callable[..., list[str]]


class Cost(NamedTuple):
    """What one run of a process took."""

    seconds: float
    cpu: float
    peak: int
    written: int


def script(text: str) -> Side:
    """The command that runs one of the texts above."""
    return lambda *args: [sys.executable, "-c", CHILD.format(threads=2) + text, *map(str, args)]


def lazysd(*options: str) -> Side:
    """`lazysd convert` as from a shell."""

    def command(src: Path, dst: Path, workers: int) -> list[str]:
        ours = [
            sys.executable,
            "-m",
            "lazysd",
            "convert",
            str(src),
            str(dst),
            *options,
            "--workers",
            str(workers),
            "-q",
        ]
        return ["sh", "-c", '"$@"; status=$?; sync; exit $status', "sh", *ours]

    return command


def copied(src: Path, dst: Path, workers: int) -> list[str]:
    """cp -r, then sync."""
    return ["sh", "-c", 'cp -r "$1" "$2"; sync', "sh", str(src), str(dst)]


# A small process between: the peak that the system reports of a child is never less than that of who started it.
BETWEEN = """
import os, sys, time
began = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(child, 0)
print(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def cost(command: list[str], dst: Path) -> Cost:
    """Run it to its end. RuntimeError with what it said where it fails."""
    between = [sys.executable, "-I", "-S", "-c", BETWEEN]
    done = subprocess.run([*between, *command], capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        raise RuntimeError(f"{command[:4]} failed:\n{done.stderr[-2000:]}")
    seconds, cpu, peak = map(float, done.stdout.split())
    written = sum(path.stat().st_size for path in dst.rglob("*") if path.is_file()) if dst.exists() else 0
    return Cost(seconds, cpu, int(peak), written)


def race(title: str, src: Path, out: Path, sides: Mapping[str, Side], given: argparse.Namespace) -> str:
    """All sides in turns, with every number of workers for lazysd; one table."""
    nbytes = sum(path.stat().st_size for path in src.rglob("*") if path.is_file())
    entries: dict[str, Callable[[], list[str]]] = {}  # by how the row is called
    missing = [name for name in sides if name in NEEDS and not importlib.util.find_spec(NEEDS[name])]
    for name, command in sides.items():
        counts = given.workers if name == "lazysd" else [max(given.workers)]
        for count in counts if name not in missing else ():
            label = f"{name}, {count} worker{'s'[: count > 1]}" if len(counts) > 1 else name
            entries[label] = partial(command, src, out, count)
    found: dict[str, list[Cost]] = {label: [] for label in entries}
    for number in range(given.repeats + 1):
        for label, make in entries.items():
            warm(src)
            spent = cost(make(), out)
            if number:
                found[label].append(spent)
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
    rows: list[tuple[object, ...]] = []
    for label, runs in found.items():
        wall, cpu, peak, written = (statistics.median(values) for values in zip(*runs, strict=True))
        rate, cpu_a_gb = f"{nbytes / wall / 1e9:.2f} GB/s", f"{cpu / nbytes * 1e9:.2f}"
        rows.append((label, f"{wall:.2f} s", rate, cpu_a_gb, megabytes(peak), megabytes(written)))
    rows += [(name, "not installed", "", "", "", "") for name in missing]
    return table(
        f"{title}, {nbytes / 1e9:.1f} GB", ("side", "wall", "rate", "CPU s a GB", "peak memory", "written"), rows
    )


def warm(src: Path) -> None:
    """The source into the page cache, whatever its files are called."""
    for path in src.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def made(folder: Path, *command: str) -> Path:
    """A source made of another by lazysd."""
    subprocess.run(
        [sys.executable, "-m", "lazysd", "convert", *command, str(folder), "-q"],
        check=True, env=environment(), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return folder


def run(scratch: Path, given: argparse.Namespace) -> str:
    """Every job."""
    src, out = (
        dense_checkpoint(scratch / "hf", given.layers, QWEN3_30B._replace(experts=given.experts)),
        scratch / "out",
    )
    peers = {"plain script": TO_NEMO, "layer by layer": LAYERWISE, "nemo-automodel": NEMO}
    through = {"lazysd": lazysd(), "cp -r; sync": copied}
    grouped = {"lazysd": lazysd("--to", "nemo"), "cp -r; sync": copied} | scripts(peers)

    def dcp() -> str:
        folder = made(scratch / "dcp", "--format", "dcp", str(src))
        sides = {"lazysd": lazysd(), "torch dcp_to_torch_save": script(DCP_TO_TORCH)}
        return race("A DCP folder into one file", folder, out, sides, given)

    def few_bits() -> str:
        sides = {"lazysd": lazysd("--dtype", "bf16"), "compressed-tensors": script(COMPRESSED)}
        return race("FP8 blocks to bfloat16", fp8(scratch / "fp8", src), out, sides, given)

    jobs: dict[str, Callable[[], str]] = {
        "grouped": lambda: race("hf -> nemo", src, out, grouped, given),
        "through": lambda: race("Passed through", src, out, through | {"mergekit": script(MERGEKIT)}, given),
        "dcp": dcp,
        "fp8": few_bits,
        "load": lambda: race("Every tensor into CPU memory", src, out, scripts(LOAD), given),
    }
    return "\n".join(jobs[name]() for name in given.only or jobs)


def scripts(texts: Mapping[str, str]) -> dict[str, Side]:
    """A side for each of the texts above."""
    return {name: script(text) for name, text in texts.items()}


def fp8(folder: Path, src: Path) -> Path:
    """The checkpoint with its experts and attention in FP8 blocks, as transformers writes them."""
    return made(folder, str(src), "--quantize", "fp8-blocks")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--experts", type=int, default=QWEN3_30B.experts)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=("grouped", "through", "dcp", "fp8", "load"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        found = [f"{name} {version(name)}" for name, module in PACKAGES.items() if importlib.util.find_spec(module)]
        print(machine(Path(scratch)) + "; " + ", ".join(found) + "\n")
        print(run(Path(scratch), given))


if __name__ == "__main__":
    main()

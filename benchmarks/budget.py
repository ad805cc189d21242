"""What commands add to a process, against the budget that they were given: many outputs, one giant, few-bit weights.

    python benchmarks/budget.py [--scratch /tmp] [--only NAME] [--scale 1]

Every command runs in a fresh process with torch and lazysd imported, once at the default budget and once at the
smallest that it takes. `peak` is the high-water mark of memory that is no file's (anonymous), above what the process
had before; pages of libraries that are touched for the first time are not counted, for they are torch's.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from measure import environment, machine, table, verdict

DEFAULT = 128_000_000
ITEM_NBYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}
_REFUSED = re.compile(r"smallest that would do is (\d+)MB")
_BLOCK_NBYTES = 1 << 20

# One interpreter, and a fork of it for each command. Anonymous memory at its peak: the mark of all memory, less what
# files have by the end, which only grows meanwhile.
CHILD = """
import gc, json, os, sys
import numpy, torch
import lazysd.cli.main, lazysd.save.saving, lazysd.comparison, lazysd.stats, lazysd.merging, lazysd.checking
from lazysd.move import fill
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
def run(arguments):
    if arguments[0] == "thirds":
        taken = {"w": lazysd.open(arguments[1], io="pread")["w"].reshape(-1)[::3]}
        lazysd.Checkpoint(taken).save(arguments[2], max_memory=arguments[4])
        return 0
    return lazysd.cli.main.main(arguments)
def watched(arguments, said):
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")
    before = status("RssAnon")
    try:
        code = run(arguments)
    except lazysd.errors.MemoryBudgetError as error:
        print(error, file=sys.stderr)
        code = 2
    peak = status("VmHWM") - status("RssFile") - before
    sys.stdout.flush()
    with open(said + ".json", "w") as file:
        json.dump([code, peak], file)
for number, arguments in enumerate(json.loads(sys.argv[2])):
    if not os.fork():
        try:
            watched(arguments, f"{sys.argv[1]}/{number}")
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.wait()
"""


class Measured(NamedTuple):
    """One run of a command."""

    code: int
    peak_nbytes: int
    said: str  # on stdout and stderr


class Scenario(NamedTuple):
    """A command, and what it reads."""

    name: str
    build: Callable[[Path, float], None]  # makes the sources in a folder, at a scale
    arguments: tuple[str, ...]  # of the command; `{}` is the folder


def measured(*commands: list[str]) -> list[Measured]:
    """Run commands one after the other, and see what each added to its process."""
    with tempfile.TemporaryDirectory() as said:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, said, json.dumps(commands)],
            capture_output=True, text=True, check=False, env=environment(),
        )  # fmt: skip
        found = []
        for number, command in enumerate(commands):
            text, numbers = Path(said, str(number)), Path(said, f"{number}.json")
            shown = text.read_text() if text.exists() else done.stderr
            if not numbers.exists():
                raise RuntimeError(f"measured process failed: {command}\n{shown}")
            found.append(Measured(*json.loads(numbers.read_text()), shown))
        return found


def under(command: list[str], budget: int) -> list[str]:
    """The command under a budget."""
    return [*command, "--max-memory", str(budget)]


def smallest(*commands: list[str]) -> list[int]:
    """The least budget that each command takes, as its refusal names it."""
    found = []
    for refused in measured(*(under(command, 1_000_000) for command in commands)):
        match = _REFUSED.search(refused.said)
        if refused.code != 2 or match is None:
            raise RuntimeError(f"expected a refusal that names the smallest budget, got {refused}")
        found.append(int(match[1]) * 1_000_000)
    return found


Rows = Iterable[tuple[str, str, tuple[int, ...]]]


def write(path: Path, rows: Rows, seed: int = 1) -> None:
    """A safetensors file by plain json; its data repeats a stretch of noise that holds finite numbers only."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, code, dims in rows:
        nbytes = ITEM_NBYTES[code]
        for size in dims:
            nbytes *= size
        fields[key] = {"dtype": code, "shape": list(dims), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    noise = bytes((at * 73 + at // 251 * seed) % 60 for at in range(_BLOCK_NBYTES))  # no exponent is all ones
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while end > 0:
            end -= file.write(noise[: min(end, _BLOCK_NBYTES)])


def config(folder: Path, **said: object) -> None:
    """A config.json of a Qwen3-MoE model."""
    shape = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], **said}
    (folder / "config.json").write_text(json.dumps(shape))


def grouped(folder: Path, layers: int, experts: int, hidden: int, inner: int) -> None:
    """Layout nemo: two tensors a layer."""
    rows = [
        (f"model.layers.{layer}.mlp.experts.{name}", "BF16", dims)
        for layer in range(layers)
        for name, dims in (
            ("gate_and_up_projs", (experts, hidden, 2 * inner)),
            ("down_projs", (experts, inner, hidden)),
        )
    ]
    write(folder / "model.safetensors", rows)
    config(folder, num_experts=experts, hidden_size=hidden, moe_intermediate_size=inner, num_hidden_layers=layers)


def single(
    folder: Path, layers: int, experts: int, hidden: int, inner: int, code: str = "BF16", block: int = 0, **said: object
) -> None:
    """Layout hf: three tensors an expert, with scales where they are codes in blocks."""

    def rows() -> Iterator[tuple[str, str, tuple[int, ...]]]:
        for layer in range(layers):
            for expert in range(experts):
                for name, dims in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
                    key = f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"
                    yield key, code, dims
                    if block:
                        yield f"{key}_scale_inv", "F32", (-(-dims[0] // block), -(-dims[1] // block))

    write(folder / "model.safetensors", rows())
    sizes = {"num_experts": experts, "hidden_size": hidden, "moe_intermediate_size": inner}
    config(folder, num_hidden_layers=layers, **sizes, **said)


def _many(at: Path, scale: float) -> None:
    grouped(at / "src", max(1, int(260 * scale)), 128, 16, 8)


def _giant(at: Path, scale: float) -> None:
    write(at / "src" / "model.safetensors", [("w", "BF16", (max(1, int(131_072 * scale)), 4096))])


def _wide(at: Path, scale: float) -> None:
    grouped(at / "src", 2, max(1, int(32 * scale)), 2048, 768)


def _fp8(at: Path, scale: float) -> None:
    said = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    single(at / "src", 2, max(1, int(32 * scale)), 2048, 1536, "F8_E4M3", 128, **said)


def _few_bits(at: Path, scale: float) -> None:
    experts = max(1, int(16 * scale))
    rows = [
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", (experts, 5760, 90, 16)),
        ("model.layers.0.mlp.experts.gate_up_proj_scales", "U8", (experts, 5760, 90)),
    ]
    write(at / "src" / "model.safetensors", rows)
    (at / "src" / "config.json").write_text(
        json.dumps({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}})
    )


def _shards(at: Path, scale: float) -> None:
    single(at / "src", 1, max(1, int(700 * scale)), 64, 32)


def _both(at: Path, scale: float) -> None:
    single(at / "src", 2, max(1, int(32 * scale)), 2048, 768)
    shutil.copytree(at / "src", at / "other")
    with open(at / "other" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")


def _written(at: Path, scale: float) -> None:
    single(at / "from", 2, max(1, int(32 * scale)), 2048, 768)
    (made,) = measured(["convert", str(at / "from"), str(at / "src"), "--to", "nemo", "-q"])
    if made.code:
        raise RuntimeError(made.said)


def _tiny(at: Path, scale: float) -> None:
    """Many tensors of a few elements, whose keys do not fold."""
    name = "model.layers.{}.mlp.block{}x.a_name_as_long_as_names_become.weight"
    keys = [name.format(n % 48, n) for n in range(int(30_000 * scale))]
    for seed, side in enumerate(("src", "other"), 1):
        write(at / side / "model.safetensors", [(key, "BF16", (8,)) for key in keys], seed)


def _adapter(at: Path, scale: float) -> None:
    experts = max(1, int(32 * scale))
    single(at / "src", 1, experts, 2048, 768)
    head = "base_model.model.model.layers.0.mlp.experts."
    rows = [
        (f"{head}{expert}.{name}_proj.lora_{side}.weight", "F32", (16, wide) if side == "A" else (tall, 16))
        for expert in range(experts)
        for name, tall, wide in (("gate", 768, 2048), ("up", 768, 2048), ("down", 2048, 768))
        for side in "AB"
    ]
    write(at / "adapter" / "adapter_model.safetensors", rows)
    said = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["gate_proj", "up_proj", "down_proj"]}
    (at / "adapter" / "adapter_config.json").write_text(json.dumps(said))


SCENARIOS = (
    Scenario("many outputs", _many, ("convert", "{}/src", "{}/dst", "--to", "hf", "-q")),
    Scenario("one giant", _giant, ("convert", "{}/src", "{}/dst", "-q")),
    Scenario("transposed", _wide, ("convert", "{}/src", "{}/dst", "--to", "hf", "-q")),
    Scenario("cast", _giant, ("convert", "{}/src", "{}/dst", "--dtype", "f32", "-q")),
    Scenario("FP8 -> bf16", _fp8, ("convert", "{}/src", "{}/dst", "--dtype", "bf16", "-q")),
    Scenario("MXFP4 -> bf16", _few_bits, ("convert", "{}/src", "{}/dst", "--dtype", "bf16", "-q")),
    Scenario("bf16 -> FP8", _wide, ("convert", "{}/src", "{}/dst", "--to", "hf", "--quantize", "fp8-blocks", "-q")),
    Scenario("bf16 -> MXFP4", _giant, ("convert", "{}/src", "{}/dst", "--quantize", "mxfp4", "-q")),
    Scenario("many shards", _shards, ("convert", "{}/src", "{}/dst", "--max-shard-size", "4KB", "-q")),
    Scenario("strided", _giant, ("thirds", "{}/src", "{}/dst")),
    Scenario("merge", _adapter, ("merge", "{}/src", "{}/adapter", "{}/dst", "-q")),
    Scenario("dcp", _many, ("convert", "{}/src", "{}/dst", "--to", "hf", "--format", "dcp", "-q")),
    Scenario("verify", _written, ("verify", "{}/src", "--workers", "8", "-q")),
    Scenario("verify against", _written, ("verify", "{}/src", "--against", "{}/from", "--workers", "8", "-q")),
    Scenario("diff", _both, ("diff", "{}/src", "{}/other", "--workers", "8", "-q")),
    Scenario("stats", _both, ("stats", "{}/src", "--workers", "8", "-q")),
    Scenario("tiny: stats", _tiny, ("stats", "{}/src", "--keys", "-q")),
    Scenario("tiny: stats --json", _tiny, ("stats", "{}/src", "--json", "-q")),
    Scenario("tiny: diff", _tiny, ("diff", "{}/src", "{}/other", "-q")),
    Scenario("tiny: diff --json", _tiny, ("diff", "{}/src", "{}/other", "--json", "-q")),
    Scenario("tiny: verify", _tiny, ("verify", "{}/src", "--against", "{}/src", "--json", "-q")),
)


def run(scratch: Path, scale: float = 1.0, only: str | None = None) -> str:
    rows = []
    for scenario in SCENARIOS:
        if only is not None and only not in scenario.name:
            continue
        folder = scratch / "one"
        scenario.build(folder, scale)
        command = [part.format(folder) for part in scenario.arguments]
        for budget in (DEFAULT, *smallest(command)):
            (found,) = measured(under(command, budget))
            shutil.rmtree(folder / "dst", ignore_errors=True)
            held = f"{found.peak_nbytes / 1e6:.1f} MB"
            rows.append((scenario.name, f"{budget / 1e6:.1f} MB", held, found.code, verdict(found.peak_nbytes, budget)))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    return table("Budgets", ("command", "budget", "peak above the interpreter", "exit code", "kept"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="folder for sources and results; takes about 4 GB")
    parser.add_argument("--scale", type=float, default=1.0, help="of the sources")
    parser.add_argument("--only", help="commands whose name holds this")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        print(machine(Path(scratch)))
        print(run(Path(scratch), given.scale, given.only))


if __name__ == "__main__":
    main()

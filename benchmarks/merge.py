"""Merging a LoRA into a Qwen3-30B-shaped layer: against a plain script, and against PEFT's merge_and_unload.

    python benchmarks/merge.py [--scratch /tmp] [--layers 1] [--rank 16] [--repeats 3]

Each side reads the same base (per expert, bf16) and the same adapter (as peft 0.19 stores it, float32), writes to the
same disk and ends with its data on disk (sync). Memory is the growth of VmHWM of a fresh process over its size with
torch imported. PEFT adds in the dtype of the base; the plain script and lazysd add in float32 and round once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import child, machine, megabytes, table, verdict
from synth import QWEN3_30B, dense_checkpoint

ALPHA = 32

OURS = """
import os
began = begin()
import lazysd
from lazysd.merging import merge
base, adapter, dst = sys.argv[1:4]
merge(lazysd.open(base, io="pread"), lazysd.open(adapter, io="pread")).save(dst, workers=2)
os.sync()
end(began)
"""

# What people write today: everything in memory, one weight after the other.
PLAIN = """
import glob, json, os, re
from safetensors.torch import load_file, save_file
base, adapter, dst = sys.argv[1:4]
began = begin()
os.makedirs(dst)
tensors = {}
for path in sorted(glob.glob(base + "/*.safetensors")):
    tensors.update(load_file(path))
said = json.load(open(adapter + "/adapter_config.json"))
lora = load_file(adapter + "/adapter_model.safetensors")
scale, r = said["lora_alpha"] / said["r"], said["r"]
for key in [key for key in lora if key.endswith("lora_A.weight")]:
    a, b = lora[key], lora[key.replace("lora_A", "lora_B")]
    head = key.removeprefix("base_model.model.").split("experts.")[0] + "experts."
    experts = a.shape[0] // r
    a, b = a.view(experts, r, -1), b.view(-1, r, experts)
    for e in range(experts):
        delta = scale * (b[:, :, e] @ a[e])
        names = ["gate_proj", "up_proj"] if "base_layer" in key else ["down_proj"]
        for name, part in zip(names, delta.chunk(len(names))):
            weight = tensors[f"{head}{e}.{name}.weight"]
            weight.copy_(weight.float() + part)
save_file(tensors, dst + "/model.safetensors", metadata={"format": "pt"})
os.sync()
end(began)
"""

PEFT = """
import os
import transformers, peft
base, adapter, dst = sys.argv[1:4]
began = begin()
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
model.save_pretrained(dst)
os.sync()
end(began)
"""


def write_lora(folder: Path, layers: int, rank: int) -> Path:
    """A random adapter on every expert, as peft 0.19 stores it."""
    import torch
    from safetensors.torch import save_file

    experts, hidden, inner = QWEN3_30B.experts, QWEN3_30B.hidden, QWEN3_30B.inner
    torch.manual_seed(0)
    tensors = {}
    for layer in range(layers):
        at = f"base_model.model.model.layers.{layer}.mlp.experts."
        for wrapper, goes_in, comes_out in (("base_layer.", hidden, 2 * inner), ("", inner, hidden)):
            tensors[f"{at}{wrapper}lora_A.weight"] = 0.01 * torch.randn(rank * experts, goes_in)
            tensors[f"{at}{wrapper}lora_B.weight"] = 0.01 * torch.randn(comes_out, rank * experts)
    said = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "peft_version": "0.21.2", "r": rank, "lora_alpha": ALPHA,
        "target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    }  # fmt: skip
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def same_weights(left: Path, right: Path) -> float:
    """The largest difference between two results, over both: what is compared has to be the same work."""
    import lazysd

    worst = 0.0
    with lazysd.open(left) as ours, lazysd.open(right) as theirs:
        theirs = theirs.convert("hf")
        for key in ours:
            if ".experts.0." in key:
                worst = max(
                    worst, float((ours[key].materialize().float() - theirs[key].materialize().float()).abs().max())
                )
    return worst


def run(scratch: Path, layers: int = 1, rank: int = 16, repeats: int = 3) -> str:
    """Every side in turn; medians. The adapter and the base are made in `scratch`."""
    base, adapter = dense_checkpoint(scratch / "base", layers, shards=1), write_lora(scratch / "lora", layers, rank)
    nbytes = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    sides: dict[str, Callable[[Path], Any]] = {
        "lazysd": lambda dst: child(OURS, base, adapter, dst),
        "plain script": lambda dst: child(PLAIN, base, adapter, dst),
        "PEFT": lambda dst: child(PEFT, base, adapter, dst),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            dst = scratch / name.replace(" ", "-")
            shutil.rmtree(dst, ignore_errors=True)
            os.sync()
            found[name].append(side(dst))
    rows: list[tuple[object, ...]] = []
    middle = {
        name: {field: statistics.median(one[field] for one in runs) for field in ("seconds", "hwm_growth")}
        for name, runs in found.items()
    }
    for name, took in middle.items():
        apart = same_weights(scratch / "lazysd", scratch / name.replace(" ", "-"))
        held = megabytes(took["hwm_growth"])
        rows.append(
            (name, f"{took['seconds']:.2f} s", f"{nbytes / took['seconds'] / 1e9:.2f} GB/s", held, f"{apart:.1e}", "")
        )
    peak = middle["lazysd"]["hwm_growth"]
    rows.append(("lazysd, memory", "", "at most 128 MB", megabytes(peak), "", verdict(peak, 128e6)))
    return table(
        f"Merging a LoRA of rank {rank} into {nbytes / 1e9:.1f} GB, {layers} layers of Qwen3-30B-A3B, two workers",
        ("side", "time", "rate or limit", "VmHWM growth", "largest difference to lazysd, expert 0", "reached"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure; takes about 5 GB a layer")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        print(machine(Path(scratch)))
        print(run(Path(scratch), given.layers, given.rank, given.repeats))


if __name__ == "__main__":
    main()

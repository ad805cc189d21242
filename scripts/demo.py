"""A walk through lazysd on data it makes itself: build, look, plan, convert, verify, and back, bit for bit.

Run by `make demo`. Everything goes to demo-out/, made anew each time.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent.parent / "demo-out"
LAYERS, EXPERTS, HIDDEN, INNER, VOCAB = 2, 32, 512, 192, 1024


def build(dst: Path) -> None:
    """A small Qwen3-MoE checkpoint with random weights, in two shards, as transformers lays them out."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}."
        shapes |= {f"{block}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{block}mlp.gate.weight": (EXPERTS, HIDDEN), f"{block}input_layernorm.weight": (HIDDEN,)}
        for expert in range(EXPERTS):
            for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
                shapes[f"{block}mlp.experts.{expert}.{name}_proj.weight"] = shape
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    dst.mkdir(parents=True)
    keys, weight_map = list(shapes), {}
    for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({key: torch.randn(shapes[key]).bfloat16() for key in part}, dst / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (dst / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {"model_type": "qwen3_moe", "num_experts": EXPERTS, "hidden_size": HIDDEN, "moe_intermediate_size": INNER}
    (dst / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}))


# (what it shows, command line without `lazysd`), run in the folder that holds hf/
STEPS = [
    ("what is in it: headers only, no torch", "inspect hf"),
    ("what a conversion would do, proved before a byte moves", "plan hf --to nemo"),
    ("Hugging Face -> NeMo, streamed, then read back and compared", "convert hf nemo --to nemo --verify"),
    ("and back again", "convert nemo back --to hf"),
    ("the round trip, bit for bit", "verify back --against hf"),
    (
        "one expert of a grouped tensor, straight from the Hugging Face files",
        'show hf model.layers.1.mlp.experts.gate_and_up_projs --to nemo --slice "7, :3, ::96"',
    ),
]


def main() -> None:
    """Show each command, run it, and stop at the first that fails."""
    if OUT.exists():
        shutil.rmtree(OUT)
    build(OUT / "hf")
    for title, command in STEPS:
        print(f"\n# {title}\n$ lazysd {command}", flush=True)
        done = subprocess.run([sys.executable, "-m", "lazysd", *shlex.split(command)], check=False, cwd=OUT)
        if done.returncode:
            raise SystemExit(done.returncode)  # the command has said why
    print(f"\nEverything is in {OUT.name}/. Next: `python -m lazysd --help`, README.md, notebooks/.")


if __name__ == "__main__":
    main()

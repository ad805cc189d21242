"""A one-layer Qwen3-MoE of real shape from per-expert files: load_into against transformers' from_pretrained.

python benchmarks/load.py [--scratch /tmp] [--small]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from measure import child, machine, megabytes, table, verdict
from synth import QWEN3_30B, Shape, dense_checkpoint

# Imports and the classes' first use are not what is compared, so both sides do them before the clock starts.
COMMON = """
from transformers import AutoConfig, Qwen3MoeForCausalLM
config = AutoConfig.from_pretrained(sys.argv[1])
with torch.device("meta"): Qwen3MoeForCausalLM(config)
"""

OURS = (
    COMMON
    + """
import lazysd
from lazysd import load
from lazysd.move import fill
began = begin()
with torch.device("meta"):
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
report = lazysd.load_into(model, lazysd.open(sys.argv[1]).convert("hf-fused"))
assert all("rotary" in key for key in report.left_on_meta)
model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
end(began)
"""
)

THEIRS = (
    COMMON
    + """
began = begin()
model = Qwen3MoeForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
end(began)
"""
)


def run(scratch: Path, repeats: int = 5, shape: Shape = QWEN3_30B) -> str:
    src = dense_checkpoint(scratch / "hf-1", 1, shape, shards=2)
    nbytes = sum(path.stat().st_size for path in src.glob("*.safetensors"))
    expert = 3 * 2 * shape.hidden * shape.inner
    found: dict[str, list[dict[str, float]]] = {"load_into": [], "from_pretrained": []}
    for number in range(repeats + 1):
        for name, code in (("load_into", OURS), ("from_pretrained", THEIRS)):
            one = child(code, src)
            if number:
                found[name].append(one)
    took = {name: statistics.median(one["seconds"] for one in runs) for name, runs in found.items()}
    peak = {name: statistics.median(one["hwm_growth"] for one in runs) for name, runs in found.items()}
    limit, ratio = nbytes + expert, took["from_pretrained"] / took["load_into"]
    rows = [
        (name, f"{took[name]:.3f} s", f"{nbytes / took[name] / 1e9:.2f} GB/s", megabytes(peak[name]), "", "")
        for name in took
    ]
    rows.append(("from_pretrained / load_into", f"{ratio:.2f}", "", "", "at least 3", verdict(3, ratio)))
    rows.append(
        ("growth of load_into", "", "", megabytes(peak["load_into"]), f"layer and one expert, {megabytes(limit)}",
         verdict(peak["load_into"], limit))
    )  # fmt: skip
    return table(
        f"One layer of {shape.experts} experts ({nbytes / 1e9:.2f} GB) from per-expert files into a model",
        ("side", "time or ratio", "rate", "VmHWM growth", "limit", "reached"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="where to make the files of 1.3 GB")
    parser.add_argument("--small", action="store_true", help="a quarter of the experts, to try the script")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        print(machine(Path(scratch)))
        print(run(Path(scratch), shape=QWEN3_30B._replace(experts=32) if given.small else QWEN3_30B))


if __name__ == "__main__":
    main()

"""One grouped tensor to the CPU from a warm file: against touching that memory, and against nemo-automodel's from_hf.

python benchmarks/materialize.py [--scratch /tmp] [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from measure import child, machine, megabytes, table, verdict
from synth import QWEN3_30B, dense_checkpoint

CALLS = 5  # of each kind in one process, of which medians are taken

# Sides that take turns in one process, so that all of them find its memory in the same state.
OURS = """
import statistics
import lazysd
node = lazysd.open(sys.argv[1]).convert("nemo")["model.layers.0.mlp.experts.gate_and_up_projs"]
node.materialize()
held = torch.zeros(node.shape, dtype=node.dtype)
def touch():
    made = torch.empty(node.shape, dtype=node.dtype)
    made.fill_(1)
sides = {"fresh": node.materialize, "touch": touch, "out": lambda: node.materialize(out=held)}
times = {name: [] for name in sides}
for _ in range(int(sys.argv[2])):
    for name, work in sides.items():
        began = time.perf_counter()
        made = work()
        times[name].append(time.perf_counter() - began)
        del made
print(json.dumps({name: statistics.median(found) for name, found in times.items()}))
"""

FIRST = """
import lazysd
node = lazysd.open(sys.argv[1]).convert("nemo")["model.layers.0.mlp.experts.gate_and_up_projs"]
began = begin()
tensor = node.materialize()
end(began)
"""

NEMO = """
import glob, statistics
from types import SimpleNamespace
from safetensors import safe_open
from nemo_automodel.components.models.qwen3_moe.state_dict_adapter import Qwen3MoeStateDictAdapter
moe = SimpleNamespace(n_routed_experts=128, moe_inter_dim=768, dim=2048, expert_activation="swiglu", expert_bias=False)
adapter = Qwen3MoeStateDictAdapter(None, moe, SimpleNamespace(dispatcher="torch", experts="torch"), torch.bfloat16)
def work():
    with safe_open(glob.glob(sys.argv[1] + "/*.safetensors")[0], "pt") as file:
        return adapter.from_hf({key: file.get_tensor(key) for key in file.keys() if ".experts." in key})
work()
times = []
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    made = work()
    times.append(time.perf_counter() - began)
    del made
print(json.dumps({"nemo": statistics.median(times)}))
"""


def run(scratch: Path, repeats: int = 3) -> str:
    src = dense_checkpoint(scratch / "hf-1", 1, shards=1)
    expert = QWEN3_30B.hidden * QWEN3_30B.inner * 2 * 2
    gate_up, whole = 128 * expert, 128 * expert * 3 // 2
    found: dict[str, list[float]] = {"fresh": [], "touch": [], "out": [], "nemo": []}
    for _ in range(repeats):
        for code in (OURS, NEMO):
            for name, seconds in child(code, src, CALLS).items():
                found[name].append(seconds)
    took = {name: statistics.median(times) for name, times in found.items()}
    peak = statistics.median(child(FIRST, src)["hwm_growth"] for _ in range(repeats))
    rates = {name: (whole if name == "nemo" else gate_up) / seconds / 1e9 for name, seconds in took.items()}
    names = {
        "fresh": "materialize() into fresh memory", "touch": "torch.empty(n).fill_(1)",
        "out": "materialize(out=) into memory that has been touched",
        "nemo": "safe_open and from_hf, down_projs as well",
    }  # fmt: skip
    rows: list[tuple[object, ...]] = [
        (names[name], f"{took[name]:.3f} s", f"{rates[name]:.2f} GB/s", "") for name in found
    ]
    over, out, fresh = took["fresh"] / took["touch"], rates["out"] / rates["nemo"], rates["fresh"] / rates["nemo"]
    rows += [
        ("fresh memory over touching it", f"{over:.2f}", "at most 1.3", verdict(over, 1.3)),
        ("out= over from_hf, GB/s", f"{out:.2f}", "at least 5", verdict(5, out)),
        ("fresh memory over from_hf, GB/s", f"{fresh:.2f}", "", ""),
        ("growth of VmHWM in the first call", megabytes(peak), f"result and one expert, {megabytes(gate_up + expert)}",
         verdict(peak, gate_up + expert)),
    ]  # fmt: skip
    title = f"One grouped tensor of Qwen3-30B-A3B, {megabytes(gate_up)}, from a file in the page cache"
    return table(title, ("what", "time or ratio", "rate or limit", "reached"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="where to make the file of 1.3 GB")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each side")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        print(machine(Path(scratch)))
        print(run(Path(scratch), given.repeats))


if __name__ == "__main__":
    main()

"""One grouped tensor to the CPU from a warm file, against nemo-automodel's from_hf on the same experts.

python benchmarks/materialize.py [--scratch /tmp]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from measure import child, machine, megabytes, table, verdict
from synth import QWEN3_30B, dense_checkpoint

OURS = """
import lazysd
node = lazysd.open(sys.argv[1]).convert("nemo")["model.layers.0.mlp.experts.gate_and_up_projs"]
if sys.argv[2] == "warm": node.materialize()
began = begin()
tensor = node.materialize()
end(began)
"""

NEMO = """
import glob
from types import SimpleNamespace
from safetensors import safe_open
from nemo_automodel.components.models.qwen3_moe.state_dict_adapter import Qwen3MoeStateDictAdapter
moe = SimpleNamespace(n_routed_experts=128, moe_inter_dim=768, dim=2048, expert_activation="swiglu", expert_bias=False)
adapter = Qwen3MoeStateDictAdapter(None, moe, SimpleNamespace(dispatcher="torch", experts="torch"), torch.bfloat16)
def work():
    with safe_open(glob.glob(sys.argv[1] + "/*.safetensors")[0], "pt") as file:
        return adapter.from_hf({key: file.get_tensor(key) for key in file.keys() if ".experts." in key})
if sys.argv[2] == "warm": work()
began = begin()
tensors = work()
end(began)
"""


def run(scratch: Path, repeats: int = 5) -> str:
    src = dense_checkpoint(scratch / "hf-1", 1, shards=1)
    expert = QWEN3_30B.hidden * QWEN3_30B.inner * 2 * 2
    gate_up, whole = 128 * expert, 128 * expert * 3 // 2
    rows: list[tuple[object, ...]] = []
    rates = {}
    for state in ("warm", "first"):
        found: dict[str, list[dict[str, float]]] = {"lazysd": [], "from_hf": []}
        for number in range(repeats + 1):
            for name, code in (("lazysd", OURS), ("from_hf", NEMO)):
                one = child(code, src, state)
                if number:
                    found[name].append(one)
        for name, nbytes in (("lazysd", gate_up), ("from_hf", whole)):
            took = statistics.median(one["seconds"] for one in found[name])
            peak = statistics.median(one["hwm_growth"] for one in found[name])
            rates[name, state] = nbytes / took / 1e9
            what = "gate_and_up_projs" if name == "lazysd" else "gate_and_up_projs and down_projs"
            rows.append((f"{name}, {state} call", what, f"{took:.3f} s", f"{rates[name, state]:.2f} GB/s",
                         megabytes(peak), ""))  # fmt: skip
            if name == "lazysd" and state == "first":
                limit = gate_up + expert
                rows.append(("memory of the first call", "result and one expert", "", f"at most {megabytes(limit)}",
                             megabytes(peak), verdict(peak, limit)))  # fmt: skip
        ratio = rates["lazysd", state] / rates["from_hf", state]
        rows.append((f"lazysd / from_hf, {state} call", "", f"{ratio:.2f}", "at least 5", "", verdict(5, ratio)))
    return table(
        "One grouped tensor of Qwen3-30B-A3B from a file in the page cache",
        ("side", "what", "time or ratio", "rate or limit", "VmHWM growth", "reached"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="where to make the file of 1.3 GB")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        print(machine(Path(scratch)))
        print(run(Path(scratch)))


if __name__ == "__main__":
    main()

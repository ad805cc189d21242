"""NeMo's adapter and ours on the same torch tensors in one process: from_hf, to_hf, and how much memory each takes.

python benchmarks/adapter.py [--experts 128]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measure import child, machine, megabytes, table, verdict
from synth import QWEN3_30B

# Both adapters, the tensors of one layer, and the two directions; what is timed follows.
SETUP = """
from types import SimpleNamespace
from nemo_automodel.components.models.qwen3_moe.state_dict_adapter import Qwen3MoeStateDictAdapter as Nemo
from lazysd.adapters.nemo import Qwen3MoeStateDictAdapter as Ours
E, H, I = map(int, sys.argv[1:4])
moe = SimpleNamespace(n_routed_experts=E, moe_inter_dim=I, dim=H, expert_activation="swiglu", expert_bias=False)
backend = SimpleNamespace(dispatcher="torch", experts="torch")
adapters = {name: kind(None, moe, backend, torch.bfloat16) for name, kind in (("lazysd", Ours), ("nemo", Nemo))}
key = "model.layers.0.mlp.experts.{}.{}_proj.weight"
shapes = {"gate": (I, H), "up": (I, H), "down": (H, I)}
if sys.argv[4] == "from_hf":
    hf = {key.format(e, name): shape for e in range(E) for name, shape in shapes.items()}
else:
    at = "model.layers.0.mlp.experts."
    hf = {at + "gate_and_up_projs": (E, H, 2 * I), at + "down_projs": (E, I, H)}
hf = {key: torch.empty(shape, dtype=torch.bfloat16).normal_() for key, shape in hf.items()}
def run(name):
    adapter = adapters[name]
    return adapter.from_hf(dict(hf)) if sys.argv[4] == "from_hf" else adapter.to_hf(hf)
"""

TIMED = (
    SETUP
    + """
import statistics
times = {name: [] for name in adapters}
for number in range(int(sys.argv[5]) + 1):
    for name in times:
        started = time.perf_counter()
        made = run(name)
        took = time.perf_counter() - started
        del made
        if number: times[name].append(took)
print(json.dumps({name: statistics.median(found) for name, found in times.items()}))
"""
)

PEAK = (
    SETUP
    + """
import lazysd.move.fill, lazysd.quantization  # modules are not part of what a call takes
began = begin()
made = run(sys.argv[5])
end(began)
"""
)
LEAST = {"from_hf": 4, "to_hf": 2}


def run(experts: int = QWEN3_30B.experts, repeats: int = 5) -> str:
    """Both directions on one layer of Qwen3-30B-A3B with so many experts."""
    hidden, inner = QWEN3_30B.hidden, QWEN3_30B.inner
    expert = 3 * hidden * inner * 2
    rows: list[tuple[object, ...]] = []
    for direction, least in LEAST.items():
        sizes = (experts, hidden, inner, direction)
        took = child(TIMED, *sizes, repeats)
        ratio = took["nemo"] / took["lazysd"]
        rows.append((direction, f"{took['lazysd']:.3f} s", f"{took['nemo']:.3f} s", f"{ratio:.1f}", f"at least {least}",
                     verdict(least, ratio)))  # fmt: skip
        peaks = {name: child(PEAK, *sizes, name)["hwm_growth"] for name in ("lazysd", "nemo")}
        limit = (experts + 1) * expert
        rows.append((f"{direction}, growth of VmHWM", megabytes(peaks["lazysd"]), megabytes(peaks["nemo"]), "",
                     f"output and one expert, {megabytes(limit)}", verdict(peaks["lazysd"], limit)))  # fmt: skip
    return table(
        f"Adapter on torch tensors: {experts} experts of Qwen3-30B-A3B, bfloat16, {megabytes(experts * expert)}",
        ("call", "lazysd", "nemo-automodel 0.7.0", "ratio", "limit", "reached"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experts", type=int, default=QWEN3_30B.experts)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print(machine(Path(sys.prefix)))
    print(run(given.experts, given.repeats))


if __name__ == "__main__":
    main()

"""How long converting the LoRA of a large MoE takes as a graph: no data is read. 128 experts x 48 layers, rank 8.

Run: python benchmarks/lora_graph.py
"""

from __future__ import annotations

import platform
import statistics
import time

from measure import table, verdict

from lazysd import Checkpoint
from lazysd.graph.leaves import Full
from lazysd.tensor.lazy import LazyTensor

EXPERTS, LAYERS, HIDDEN, INTER, RANK = 128, 48, 2048, 768, 8
LAYOUTS = ("nemo", "peft-0.18", "peft-0.19", "peft-per-expert")


def native() -> Checkpoint:
    """The adapter as NeMo holds it, filled with a constant."""
    shapes = {
        "lora_gate_and_up_A": (EXPERTS, HIDDEN, RANK),
        "lora_gate_and_up_B": (EXPERTS, RANK, 2 * INTER),
        "lora_down_A": (EXPERTS, INTER, RANK),
        "lora_down_B": (EXPERTS, RANK, HIDDEN),
    }
    key = "base_model.model.model.layers.{}.mlp.experts.{}"
    return Checkpoint(
        {
            key.format(layer, name): LazyTensor(Full(0.0), (), dims, "F32")
            for layer in range(LAYERS)
            for name, dims in shapes.items()
        }
    )


def run(repeats: int = 5) -> str:
    """Every layout into every other; the median of each, in milliseconds."""
    config = {"num_experts": EXPERTS}
    rows: list[tuple[object, ...]] = []
    for source in LAYOUTS:
        start = native().convert(source)
        for target in LAYOUTS:
            times = []
            for _ in range(repeats):
                begin = time.perf_counter()
                start.convert(target, source=source, config=config)
                times.append(time.perf_counter() - begin)
            took = statistics.median(times)
            rows.append((source, target, len(start), f"{1000 * took:.0f} ms", "under 1 s", verdict(took, 1)))
    return table(
        f"Converting a LoRA of {EXPERTS} experts x {LAYERS} layers as a graph",
        ("from", "to", "keys", "time", "limit", "reached"),
        rows,
    )


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}; medians of 5")
    print(run())


if __name__ == "__main__":
    main()

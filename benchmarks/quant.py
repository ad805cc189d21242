"""Decode few-bit weights from a file: lazysd, and the library that defines the format, each on one thread.

    python benchmarks/quant.py [--mb 64]

Rates are GB of codes a second of processor time, which other work on the machine changes little. Both sides start from
the same file in the page cache and end with a bfloat16 tensor. Growth is that of the resident set while a file several
times larger than any tile is decoded and thrown away, piece by piece.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import lazysd
from lazysd.quantization import decode_tensors

Tensors = dict[str, torch.Tensor]


def mxfp4(nbytes: int) -> Tensors:
    rows = nbytes // 2048
    return {
        "e.down_proj_blocks": torch.randint(0, 256, (2, rows // 2, 128, 16), dtype=torch.uint8),
        "e.down_proj_scales": torch.randint(110, 125, (2, rows // 2, 128), dtype=torch.uint8),
    }


def nvfp4(nbytes: int) -> Tensors:
    rows = nbytes // 2048
    return {
        "q.weight_packed": torch.randint(0, 256, (rows, 2048), dtype=torch.uint8),
        "q.weight_scale": (torch.rand(rows, 256) * 400).to(torch.float8_e4m3fn),
        "q.weight_global_scale": torch.tensor([2731.7]),
    }


def int4(nbytes: int) -> Tensors:
    rows = nbytes // 2048
    return {
        "q.weight_packed": torch.randint(-(2**31), 2**31 - 1, (rows, 512), dtype=torch.int32),
        "q.weight_scale": torch.rand(rows, 128).bfloat16(),
        "q.weight_shape": torch.tensor([rows, 4096]),
    }


def fp8(nbytes: int) -> Tensors:
    rows = nbytes // 4096
    codes = torch.randint(0, 127, (rows, 4096), dtype=torch.uint8).view(torch.float8_e4m3fn)
    return {"q.weight": codes, "q.weight_scale_inv": torch.rand(rows // 128, 32)}


def by_compressed_tensors(kind: str, **weights: Any) -> Callable[[Tensors], torch.Tensor]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    compressor = BaseCompressor.get_value_from_registry(kind)
    return lambda state: compressor.decompress({k[2:]: v for k, v in state.items()}, scheme)["weight"].bfloat16()


def by_transformers_mxfp4(state: Tensors) -> torch.Tensor:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(state["e.down_proj_blocks"], state["e.down_proj_scales"])


def by_transformers_fp8(state: Tensors) -> torch.Tensor:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes, scales = state["q.weight"], state["q.weight_scale_inv"]
    return Fp8Dequantize(None)._dequantize_one(codes, scales, output_dtype=torch.bfloat16)


GROUPS: dict[str, Any] = {"num_bits": 4, "symmetric": True}
FLOAT4 = {**GROUPS, "type": "float", "strategy": "tensor_group", "group_size": 16}
INT4 = {**GROUPS, "type": "int", "strategy": "group", "group_size": 32}
CASES: dict[str, tuple[Callable[[int], Tensors], Callable[[], Callable[[Tensors], torch.Tensor]], dict[str, Any]]] = {
    "fp8-blocks": (fp8, lambda: by_transformers_fp8, {"quant_method": "fp8"}),
    "mxfp4": (mxfp4, lambda: by_transformers_mxfp4, {"quant_method": "mxfp4"}),
    "nvfp4": (nvfp4, lambda: by_compressed_tensors("nvfp4-pack-quantized", **FLOAT4), {}),
    "int4": (
        int4,
        lambda: by_compressed_tensors("pack-quantized", **INT4),
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": INT4}}},
    ),
}


def resident_nbytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--mb", type=int, default=64, help="codes a file holds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'scheme':12} {'lazysd':>10} {'other':>10} {'ratio':>7}   growth of a streamed decode")
    for name, (make, other, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            made = make(args.mb << 20)
            save_file(made, path)
            nbytes = max(tensor.numel() * tensor.element_size() for tensor in made.values())
            del made
            theirs = other()
            with lazysd.open(path, io="pread") as checkpoint:
                (node,) = decode_tensors(checkpoint, "BF16", settings).values()
                out = torch.empty(node.shape, dtype=torch.bfloat16)
                ours = seconds(lambda node=node, out=out: node.materialize(out=out))
                assert torch.equal(out.view(torch.int16), theirs(load_file(path)).contiguous().view(torch.int16))
                del out
                before, most = resident_nbytes(), 0
                step = max(1, node.shape[-2] // 64)
                for at in range(0, node.shape[-2], step):
                    node[..., at : at + step, :].materialize()
                    most = max(most, resident_nbytes() - before)
            reference = seconds(lambda path=path, theirs=theirs: theirs(load_file(path)), 1)
        print(
            f"{name:12} {nbytes / ours / 1e9:7.2f} GB/s {nbytes / reference / 1e9:5.2f} GB/s {reference / ours:6.1f}x "
            f"  {most / 1e6:.0f} MB of {2 * node.numel() / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main()

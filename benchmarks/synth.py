"""Checkpoints of real shapes: sparse ones, whose data is holes, and dense ones of random data.

Headers and index are written here with plain json, so that the reader under test is not its own witness. Key order,
shard cuts and file names follow transformers' save_pretrained: state dict order over shards, sorted names in a shard.

    python benchmarks/synth.py sparse /tmp/235b
    python benchmarks/synth.py dense /tmp/30b-4 --layers 4
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

ITEM_NBYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1}


class Shape(NamedTuple):
    """What the sizes of a Qwen3-MoE model are called in its config.json."""

    layers: int  # num_hidden_layers
    experts: int  # num_experts
    hidden: int  # hidden_size
    inner: int  # moe_intermediate_size
    heads: int = 32  # num_attention_heads
    kv_heads: int = 4  # num_key_value_heads
    head_dim: int = 128
    vocab: int = 151_936


QWEN3_235B = Shape(layers=94, experts=128, hidden=4096, inner=1536, heads=64)
QWEN3_30B = Shape(layers=48, experts=128, hidden=2048, inner=768)
KIMI_K2 = Shape(layers=61, experts=384, hidden=7168, inner=2048, heads=64, kv_heads=64, vocab=163_840)


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every key of the checkpoint and its shape, in the order of the model's state dict."""
    hidden, inner, width = shape.hidden, shape.inner, shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    for layer in range(shape.layers):
        block = f"model.layers.{layer}."
        yield block + "self_attn.q_proj.weight", (shape.heads * width, hidden)
        yield block + "self_attn.k_proj.weight", (shape.kv_heads * width, hidden)
        yield block + "self_attn.v_proj.weight", (shape.kv_heads * width, hidden)
        yield block + "self_attn.o_proj.weight", (hidden, shape.heads * width)
        yield block + "self_attn.q_norm.weight", (width,)
        yield block + "self_attn.k_norm.weight", (width,)
        yield block + "mlp.gate.weight", (shape.experts, hidden)
        for expert in range(shape.experts):
            for projection in ("gate_proj", "up_proj"):
                yield f"{block}mlp.experts.{expert}.{projection}.weight", (inner, hidden)
            yield f"{block}mlp.experts.{expert}.down_proj.weight", (hidden, inner)
        yield block + "input_layernorm.weight", (hidden,)
        yield block + "post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape.vocab, hidden)


def config(shape: Shape) -> dict[str, Any]:
    """The config.json of the model."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": shape.layers,
        "num_experts": shape.experts,
        "num_experts_per_tok": 8,
        "hidden_size": shape.hidden,
        "moe_intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
    }


def _cut(tensors: list[tuple[str, tuple[int, ...]]], itemsize: int, shards: int) -> list[list[tuple[str, Any]]]:
    """Cut the state dict into shards of about the same size, in order."""
    total = itemsize * sum(prod(dims) for _, dims in tensors)
    parts: list[list[tuple[str, Any]]] = [[] for _ in range(shards)]
    done = 0
    for key, dims in tensors:
        parts[min(shards - 1, done * shards // total)].append((key, dims))
        done += itemsize * prod(dims)
    if not all(parts):
        raise ValueError(f"cannot cut {len(tensors)} tensors into {shards} shards of about the same size")
    return parts


def _header(part: list[tuple[str, tuple[int, ...]]], code: str) -> tuple[bytes, int]:
    """The bytes before the data, and how many bytes of data follow."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, dims in sorted(part):
        nbytes = ITEM_NBYTES[code] * prod(dims)
        fields[key] = {"dtype": code, "shape": list(dims), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, end


def _write(dst: str | os.PathLike[str], shape: Shape, shards: int, code: str, dense: bool, seed: int) -> Path:
    folder = Path(dst)
    folder.mkdir(parents=True)
    tensors = list(tensor_shapes(shape))
    weight_map: dict[str, str] = {}
    noise = _noise(seed) if dense else b""
    total = 0
    for number, part in enumerate(_cut(tensors, ITEM_NBYTES[code], shards), start=1):
        name = f"model-{number:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        weight_map |= dict.fromkeys((key for key, _ in part), name)
        head, nbytes = _header(part, code)
        with open(folder / name, "wb") as file:
            file.write(head)
            if dense:
                left, at = nbytes, number
                while left:
                    at = (at * 4099 + 17) % (len(noise) // 2)  # another stretch of the noise each time
                    left -= file.write(noise[at : at + min(left, len(noise) // 2)])
            else:
                file.truncate(len(head) + nbytes)
        total += nbytes
    if shards > 1:
        index = {
            "metadata": {"total_parameters": total // ITEM_NBYTES[code], "total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config(shape), indent=2) + "\n")
    return folder


def _noise(seed: int, nbytes: int = 32 << 20) -> memoryview:
    """Random bfloat16 bytes: signs, mantissas, and exponents like those of real weights (finite numbers)."""
    import numpy as np

    values = np.random.default_rng(seed).standard_normal(nbytes // 2, dtype=np.float32) * np.float32(0.02)
    return memoryview((values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)).cast("B")


def sparse_checkpoint(
    dst: str | os.PathLike[str], shape: Shape = QWEN3_235B, shards: int = 118, code: str = "BF16"
) -> Path:
    """Write real headers over holes: every file has its full size and takes a few blocks of disk. Reads are zeros."""
    return _write(dst, shape, shards, code, dense=False, seed=0)


def dense_checkpoint(
    dst: str | os.PathLike[str],
    layers: int = 4,
    shape: Shape = QWEN3_30B,
    shards: int = 4,
    vocab: int = 1024,
    seed: int = 0,
) -> Path:
    """Write a checkpoint with random finite bfloat16 data: 1.25 GB a layer at the shape of Qwen3-30B-A3B.

    The vocabulary is cut down, so that size is experts and attention, and grows with the number of layers.
    """
    return _write(dst, shape._replace(layers=layers, vocab=vocab), shards, "BF16", dense=True, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("sparse", "dense"))
    parser.add_argument("dst")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--shards", type=int)
    given = parser.parse_args()
    if given.kind == "sparse":
        shape = QWEN3_235B._replace(layers=given.layers or QWEN3_235B.layers)
        made = sparse_checkpoint(given.dst, shape, given.shards or 118)
    else:
        made = dense_checkpoint(given.dst, given.layers or 4, shards=given.shards or 4)
    files = list(made.glob("*.safetensors"))
    size, held = (sum(get(path.stat()) for path in files) for get in (lambda s: s.st_size, lambda s: s.st_blocks * 512))
    print(f"{made}: {len(files)} shards, {size / 1e9:.1f} GB, {held / 1e9:.3f} GB on disk", file=sys.stderr)


if __name__ == "__main__":
    main()

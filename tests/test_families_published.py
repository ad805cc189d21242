"""Keys and shapes of published checkpoints, in sparse files: what is read as what, and what it would become."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

import lazysd
from lazysd.errors import LayoutError

PUBLISHED = json.loads((Path(__file__).parent / "families" / "published.json").read_text())
WIDTHS = {"BF16": 2, "F32": 4, "U8": 1, "I32": 4, "I64": 8, "F8_E4M3": 1}


def write_sparse(folder: Path, tensors: list[Any], config: dict[str, Any]) -> Path:
    """A checkpoint with these tensors of a layer and no data: the file is a header and a hole."""
    header, end = {}, 0
    for template, dtype, shape, *count in tensors:
        for expert in range(count[0] if count else 1):
            size = prod(shape) * WIDTHS[dtype]
            entry = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            header[template.format(e=expert)] = entry
            end += size
    raw = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry["model"])
def test_published_keys_and_shapes(tmp_path: Path, entry: dict[str, Any]) -> None:
    ckpt = lazysd.open(write_sparse(tmp_path / "hub", entry["tensors"], entry["config"]))
    assert ckpt.family == entry["config"]["model_type"]
    assert ckpt.layout == entry["layout"]
    for name, wanted in entry["becomes"].items():
        there = ckpt.convert(name)
        assert {key: list(there[key].shape) for key in wanted} == wanted
        assert all(there.convert(ckpt.layout)[key] is ckpt[key] for key in ckpt)


FEW_BITS = [
    (
        "openai/gpt-oss-20b",
        {
            "model_type": "gpt_oss", "num_local_experts": 32, "hidden_size": 2880, "intermediate_size": 2880,
            "quantization_config": {"quant_method": "mxfp4"},
        },
        [
            ["model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", [32, 5760, 90, 16]],
            ["model.layers.0.mlp.experts.gate_up_proj_scales", "U8", [32, 5760, 90]],
            ["model.layers.0.mlp.experts.gate_up_proj_bias", "BF16", [32, 5760]],
            ["model.layers.0.mlp.experts.down_proj_blocks", "U8", [32, 2880, 90, 16]],
            ["model.layers.0.mlp.experts.down_proj_scales", "U8", [32, 2880, 90]],
            ["model.layers.0.mlp.experts.down_proj_bias", "BF16", [32, 2880]],
            ["model.layers.0.mlp.router.weight", "BF16", [32, 2880]],
        ],
        "model.layers.0.mlp.experts.gate_and_up_projs",
        [32, 2880, 5760],
    ),
    (
        "moonshotai/Kimi-K2.5",
        {
            "model_type": "kimi_k25",
            "text_config": {"n_routed_experts": 384, "hidden_size": 7168, "moe_intermediate_size": 2048},
            "quantization_config": {"quant_method": "compressed-tensors"},
        },
        [
            [f"language_model.model.layers.1.mlp.experts.{{e}}.{word}_proj.weight_{part}", dtype, shape, 384]
            for word, rows, columns in (("gate", 2048, 7168), ("up", 2048, 7168), ("down", 7168, 2048))
            for part, dtype, shape in (
                ("packed", "I32", [rows, columns // 8]), ("scale", "BF16", [rows, columns // 32]), ("shape", "I32", [2])
            )
        ],
        "model.language_model.model.layers.1.mlp.experts.gate_and_up_projs",
        [384, 7168, 4096],
    ),
    (
        "deepseek-ai/DeepSeek-V3",
        {
            "model_type": "deepseek_v3", "n_routed_experts": 256, "hidden_size": 7168, "moe_intermediate_size": 2048,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        },
        [
            [f"model.layers.3.mlp.experts.{{e}}.{word}_proj.weight{part}", dtype, shape, 256]
            for word, rows, columns in (("gate", 2048, 7168), ("up", 2048, 7168), ("down", 7168, 2048))
            for part, dtype, shape in (
                ("", "F8_E4M3", [rows, columns]), ("_scale_inv", "F32", [rows // 128, columns // 128])
            )
        ],
        "model.layers.3.mlp.experts.gate_and_up_projs",
        [256, 7168, 4096],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "config", "tensors", "key", "shape"), FEW_BITS, ids=[form[0] for form in FEW_BITS])
def test_few_bits_are_decoded_or_refused_by_name(
    tmp_path: Path, model: str, config: dict[str, Any], tensors: list[Any], key: str, shape: list[int]
) -> None:
    """Codes without their scales are never converted as if they were weights."""
    ckpt = lazysd.open(write_sparse(tmp_path / "hub", tensors, config))
    try:
        there = ckpt.convert("nemo")
    except LayoutError as error:
        assert not any(word in str(error) for word in ("exclude", "leave out", "drop("))  # noqa: PT017
        return
    if key not in there:  # still packed: then all of it is, codes and scales under one name
        parts = {name.removeprefix(key): list(there[name].shape) for name in there if name.startswith(key)}
        source = tensors[0][0].rpartition("_")[0]
        assert parts
        assert parts == {
            name.removeprefix(source): sizes
            for name, _, sizes, *_ in tensors
            if name.startswith(source + "_") and not name.endswith("_bias")
        }
        return
    assert list(there[key].shape) == shape
    left = [name for name in there if name.startswith(key.rpartition("experts.")[0] + "experts.")]
    companions = [name for name in left if name.endswith(("_scale_inv", "_scales", "_scale"))]
    assert companions or there[key].dtype.itemsize > 1

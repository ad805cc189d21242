"""FP8 blocks that straddle gate and up stay what they are where a conversion moves whole matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_experts import Tensors, fp8_codes
from test_quant_travel import assert_same, folder

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError
from lazysd.quantization import dequantize

AT = {"llama4": "language_model.model.layers.{}.feed_forward.experts.", "qwen3_moe": "model.layers.{}.mlp.experts."}
AT |= {"gpt_oss": AT["qwen3_moe"], "deepseek_v3": AT["qwen3_moe"]}


def fused(family: str, block: tuple[int, int], E: int = 11, I: int = 24, H: int = 72) -> tuple[Tensors, dict[str, Any]]:  # noqa: E741
    torch.manual_seed(0)
    tensors: Tensors = {"model.norm.weight": torch.randn(H).bfloat16()}
    for layer in range(2):
        for name, (rows, columns) in {"gate_up_proj": (2 * I, H), "down_proj": (H, I)}.items():
            dims = (columns, rows) if family in ("llama4", "gpt_oss") else (rows, columns)
            key = AT[family].format(layer) + name
            tensors[key] = fp8_codes(E, *dims)
            tensors[key + "_scale_inv"] = torch.rand(E, -(-dims[0] // block[0]), -(-dims[1] // block[1]))
    config = {"model_type": family, "num_experts": E, "num_local_experts": E, "n_routed_experts": E, "hidden_size": H}
    config |= {"moe_intermediate_size": I, "intermediate_size": I}
    return tensors, {**config, "quantization_config": {"quant_method": "fp8", "weight_block_size": list(block)}}


def lazily(tensors: Tensors, config: dict[str, Any]) -> lazysd.Checkpoint:
    return lazysd.Checkpoint({key: lazysd.from_torch(t) for key, t in tensors.items()}, config=config)


CASES = [("qwen3_moe", "vllm"), ("qwen3_moe", "nemo"), ("deepseek_v3", "nemo"), ("llama4", "vllm"), ("gpt_oss", "vllm")]
CASES += [("gpt_oss", "torchtitan"), ("qwen3_moe", "megatron"), ("deepseek_v3", "megatron")]


@pytest.mark.parametrize("block", [(16, 16), (128, 128), (5, 5)])
@pytest.mark.parametrize(("family", "to"), CASES)
def test_whole_matrices_keep_their_blocks(family: str, to: str, block: tuple[int, int]) -> None:
    source = lazily(*fused(family, block))
    made = source.convert(to)
    assert sum(node.nbytes for node in made.values()) == source.nbytes
    assert_same(dequantize(made), dequantize(source).convert(to))
    assert_same(made.convert(source.layout or ""), source)


def test_oblong_blocks_are_not_turned() -> None:
    assert lazily(*fused("qwen3_moe", (16, 8))).convert("vllm")
    with pytest.raises(LayoutError, match=r"would have to be transposed for layout 'nemo'"):
        lazily(*fused("qwen3_moe", (16, 8))).convert("nemo")


@pytest.mark.parametrize("to", ["hf", "torchtitan"])
def test_what_takes_gate_and_up_apart_is_refused(to: str) -> None:
    with pytest.raises(LayoutError, match=r"gate_up_proj_scale_inv: parts of 24 stand side by side .*--dtype bf16"):
        lazily(*fused("deepseek_v3", (16, 16))).convert(to)


def test_an_expert_that_is_missing_is_missed() -> None:
    tensors, config = fused("qwen3_moe", (16, 16))
    for cut in ("gate_up_proj", "gate_up_proj_scale_inv"):
        key = AT["qwen3_moe"].format(1) + cut
        with pytest.raises(LayoutError, match=r"gate_up_proj"):
            lazily({**tensors, key: tensors[key][:10]}, config).convert("nemo")


def test_by_the_command_line(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", *fused("llama4", (16, 16)))
    assert main(["convert", str(source), str(tmp_path / "b"), "--to", "vllm", "--verify"]) == 0
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "c"), "--to", "hf", "--verify"]) == 0
    assert main(["diff", str(tmp_path / "c"), str(source)]) == 0
    assert_same(dequantize(lazysd.open(tmp_path / "b")), dequantize(lazysd.open(source)).convert("vllm"))

"""NVFP4 and FP8 as ModelOpt writes them for models whose experts are transposed: Llama 4, gpt-oss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_experts import Tensors, fp8_codes, u8
from test_quant_travel import assert_same, folder

import lazysd
from lazysd.cli.main import main
from lazysd.quantization import dequantize

FP4 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
AT = {"llama4": "language_model.model.layers.0.feed_forward.experts.", "gpt_oss": "model.layers.0.mlp.experts."}


def experts(family: str, algo: str, E: int = 11, I: int = 32, H: int = 64) -> tuple[Tensors, dict[str, Any]]:  # noqa: E741
    """Names, dtypes and shapes as in the headers of nvidia/Llama-4-Scout-17B-16E-Instruct-FP4 and -FP8."""
    torch.manual_seed(0)
    tensors: Tensors = {}
    for name, (rows, columns) in {"gate_up_proj": (H, 2 * I), "down_proj": (I, H)}.items():
        key = AT[family] + name
        if algo == "NVFP4":
            tensors[key] = u8(E, rows // 2, columns)
            tensors[key + "_weight_scale"] = fp8_codes(E, rows // 16, columns)
            tensors[key + "_weight_scale_2"] = torch.rand(())
        else:
            tensors |= {key: fp8_codes(E, rows, columns), key + "_weight_scale": torch.rand(())}
        tensors[key + "_input_scale"] = torch.rand(())
        if family == "gpt_oss":
            tensors[key + "_bias"] = torch.randn(E, columns).bfloat16()
    config: dict[str, Any] = {"hidden_size": H, "intermediate_size": I, "num_local_experts": E, "model_type": family}
    if family == "llama4":
        config = {"model_type": "llama4", "text_config": {**config, "model_type": "llama4_text"}}
    else:
        tensors["model.layers.0.mlp.router.weight"] = torch.randn(E, H).bfloat16()
    return tensors, {**config, "quantization_config": {"quant_method": "modelopt", "quant_algo": algo}}


def values(tensors: Tensors, key: str) -> torch.Tensor:
    """A weight by plain torch: of each pair of rows, the first is the low nibble."""
    codes, scale = tensors[key], tensors[key + "_weight_scale"]
    if codes.dtype != torch.uint8:
        return (codes.float() * scale).bfloat16()
    E, half, columns = codes.shape
    pairs = torch.stack([FP4[(codes & 15).int()], FP4[(codes >> 4).int()]], dim=2)
    factors = scale.float() * tensors[key + "_weight_scale_2"]
    return (pairs.reshape(E, 2 * half, columns) * factors.repeat_interleave(16, dim=1)).bfloat16()


@pytest.mark.parametrize("algo", ["NVFP4", "FP8"])
@pytest.mark.parametrize("family", ["llama4", "gpt_oss"])
def test_experts_of_modelopt(family: str, algo: str, tmp_path: Path) -> None:
    tensors, config = experts(family, algo)
    source = lazysd.open(folder(tmp_path / "a", tensors, config))
    plain = dequantize(source)
    for name in ("gate_up_proj", "down_proj"):
        wanted = values(tensors, AT[family] + name)
        assert torch.equal(plain[AT[family] + name].materialize().isnan(), wanted.isnan())
        assert torch.equal(plain[AT[family] + name].materialize().nan_to_num(), wanted.nan_to_num())
    for to in ("vllm", "nemo") if family == "gpt_oss" else ("vllm",):
        assert main(["convert", str(tmp_path / "a"), str(tmp_path / to), "--to", to, "--verify"]) == 0
        made = lazysd.open(tmp_path / to)
        assert_same(dequantize(made), plain.convert(to))
        assert main(["convert", str(tmp_path / to), str(tmp_path / f"{to}-hf"), "--to", "hf"]) == 0
        back = lazysd.open(tmp_path / f"{to}-hf")
        codes = {key for key in source if not key.endswith(("_scale_2", "input_scale")) and source[key].ndim}
        assert_same(back.select(*codes), source.select(*codes))
        assert_same(dequantize(back), plain)
    assert json.loads((tmp_path / "vllm/config.json").read_text()) == config


def test_one_number_for_experts_becomes_one_for_gate_and_for_up() -> None:
    tensors, config = experts("llama4", "NVFP4")
    source = lazysd.Checkpoint({key: lazysd.from_torch(t) for key, t in tensors.items()}, config=config)
    made, at = source.convert("vllm"), AT["llama4"]
    assert made[at + "w13_weight"].dims == (11, 64, 32)
    for name, ours in (("weight_scale_2", "w13_weight_scale_2"), ("input_scale", "w13_input_scale")):
        assert torch.equal(made[at + ours].materialize(), tensors[f"{at}gate_up_proj_{name}"].expand(11, 2))


def test_codes_packed_along_the_other_axis_are_no_nvfp4_of_ours() -> None:
    tensors, config = experts("llama4", "NVFP4")
    key = AT["llama4"] + "down_proj_weight_scale"
    for scale in (tensors[key][:, :1], tensors[key][..., :8], tensors[key][:2]):
        broken = {**tensors, key: scale}
        source = lazysd.Checkpoint({name: lazysd.from_torch(t) for name, t in broken.items()}, config=config)
        with pytest.raises(lazysd.errors.LayoutError, match=r"down_proj .*need scales"):
            dequantize(source)

"""Encoding to few bits: the codes of the libraries that define the formats, error bounds, and codes taken over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.errors import LayoutError
from lazysd.graph.rewrite import build
from lazysd.quant.codes import FP4_VALUES
from lazysd.quant.fp4_encoding import Fp4Codes, Fp4Scale, fp4_code
from lazysd.quantization import decode_tensors, dequantize, quantize

FP4 = torch.tensor(FP4_VALUES)
KEY = "model.layers.0.self_attn.q_proj.weight"


def weights(R: int = 24, C: int = 64) -> torch.Tensor:
    torch.manual_seed(0)
    made = torch.randn(R, C) * torch.logspace(-8, 6, R).unsqueeze(1)
    made[3, :32] = 0
    made[4, 5] = -0.0
    return made


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def test_every_rounding_to_fp4_equals_compressed_tensors() -> None:
    from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4

    values = torch.cat([torch.linspace(0, 7, 2801), torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])])
    values = torch.cat(
        [values, torch.nextafter(values, torch.tensor(9.0)), torch.nextafter(values, torch.tensor(-1.0))]
    )
    values = values.clamp(min=0)
    assert torch.equal(FP4[fp4_code(values).long()], cast_to_fp4(values.clone()))


def test_mxfp4_is_the_nearest_under_the_smallest_scale_that_holds_the_group() -> None:
    weight = weights()
    node = lazysd.from_torch(weight)
    scale = build(Fp4Scale(32), (node,)).materialize()
    codes = build(Fp4Codes(32), (node,)).materialize()
    power = scale.double() - 127
    largest = weight.double().unflatten(1, (2, 32)).abs().amax(-1)
    filled = largest > 0
    assert torch.all(largest[filled] <= 6 * 2.0 ** power[filled])
    assert torch.all(largest[filled] > 3 * 2.0 ** power[filled])
    assert scale[3, 0] == 0
    made = decode_tensors({"x.weight_packed": codes, "x.weight_scale": scale}, "F32", {})["x.weight"].materialize()
    error = (made.double() - weight.double()).abs().unflatten(1, (2, 32)).amax(-1)
    assert torch.all(error <= 2.0**power)
    every = (FP4.double().view(-1, 1) * 2.0 ** power.repeat_interleave(32, 1).view(1, -1)).view(16, *weight.shape)
    nearest = (every - weight.double()).abs().amin(0)
    assert torch.equal((made.double() - weight.double()).abs(), nearest)
    assert torch.signbit(made[4, 5])


@pytest.mark.parametrize("scheme", ["nvfp4-modelopt", "nvfp4-compressed"])
def test_nvfp4_codes_equal_compressed_tensors(scheme: str) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weight = torch.randn(24, 64) * torch.logspace(-1, 1, 24).unsqueeze(1)
    made = quantize(lazysd.Checkpoint({KEY: lazysd.from_torch(weight)}), scheme)
    parts = {key.removeprefix("model.layers.0.self_attn.q_proj."): node.materialize() for key, node in made.items()}
    total = 1 / parts["weight_scale_2"] if "weight_scale_2" in parts else parts["weight_global_scale"]
    assert torch.isclose(total, 6 * 448 / weight.abs().max())
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True)
    state = {"weight": weight, "weight_scale": parts["weight_scale"].float()}
    state["weight_global_scale"] = total.reshape(1)
    theirs = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized").compress(
        state, QuantizationScheme(targets=["Linear"], weights=args)
    )
    ours = parts["weight" if scheme == "nvfp4-modelopt" else "weight_packed"]
    assert torch.equal(ours, theirs["weight_packed"])
    scales = (weight.unflatten(1, (-1, 16)).abs().amax(-1) / 6 * total).clamp(2.0**-9, 448).to(torch.float8_e4m3fn)
    assert (bits(scales).int() - bits(parts["weight_scale"]).int()).abs().max() <= 1  # a rounding apart
    back = dequantize(made, "f32")[KEY].materialize()
    bound = parts["weight_scale"].float() / total
    assert torch.all((back - weight).abs().unflatten(1, (-1, 16)).amax(-1) <= bound)


@pytest.mark.parametrize("scheme", ["fp8-blocks", "mxfp4", "mxfp4-compressed", "mxfp4-original", "nvfp4-modelopt"])
def test_slices_of_encoded_weights_are_the_same_bits(scheme: str) -> None:
    weight = torch.randn(3, 64, 128) if "mxfp4" in scheme else torch.randn(256, 128)
    key = "m.experts.down_proj" if weight.dim() == 3 else KEY
    made = quantize(lazysd.Checkpoint({key: lazysd.from_torch(weight)}), scheme, keys=["*"])
    for node in made.values():
        whole = node.materialize()
        for part in ((..., slice(1, None, 3)), (slice(2, 3),), (slice(None), slice(5, 40, 7))):
            if node.ndim > 1 or part == (...,):
                assert torch.equal(bits(node[part].materialize()), bits(whole[part])), part


def test_a_checkpoint_is_encoded_and_says_so(tmp_path: Path) -> None:
    tensors = {
        KEY: torch.randn(128, 256),
        "model.embed_tokens.weight": torch.randn(128, 128),
        "lm_head.weight": torch.randn(128, 128),
    }
    tensors |= {"model.layers.0.mlp.gate.weight": torch.randn(128, 128), "model.norm.weight": torch.ones(128)}
    tensors |= {"model.layers.0.mlp.odd.weight": torch.randn(128, 100)}
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a/model.safetensors")
    (tmp_path / "a/config.json").write_text(json.dumps({"model_type": "x"}))
    made = quantize(lazysd.open(tmp_path / "a"), "fp8-blocks")
    plan = made.save(tmp_path / "out")
    assert plan.lossy == ("quantise f32 -> f8e4m3 (1 tensors)",) or "f8e4m3" in plan.lossy[0]
    said = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert said.pop("modules_to_not_convert") == [
        "lm_head",
        "model.embed_tokens",
        "model.layers.0.mlp.gate",
        "model.layers.0.mlp.odd",
    ]
    assert said == {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    back = dequantize(lazysd.open(tmp_path / "out"), "f32")
    assert back.keys() == tensors.keys()
    assert torch.allclose(back[KEY].materialize(), tensors[KEY], atol=0.05, rtol=0.07)


def test_nothing_that_fp4_cannot_hold() -> None:
    weight = torch.ones(4, 32)
    weight[2, 3] = float("nan")
    made = quantize(lazysd.Checkpoint({KEY: lazysd.from_torch(weight)}), "mxfp4-compressed")
    with pytest.raises(LayoutError, match="holds NaN or infinity"):
        made["model.layers.0.self_attn.q_proj.weight_packed"].materialize()
    with pytest.raises(LayoutError, match="does not write gptq"):
        quantize(lazysd.Checkpoint({KEY: lazysd.from_torch(torch.ones(4, 32))}), "gptq")
    with pytest.raises(LayoutError, match=r"no floating-point weight matches \*\.nothing"):
        quantize(made, "fp8-blocks", keys=["*.nothing"])


def mxfp4(exponents: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    codes = torch.randint(0, 256, (*exponents.shape[:-1], exponents.shape[-1] * 16), dtype=torch.uint8)
    return {"q.weight_packed": codes, "q.weight_scale": exponents.to(torch.uint8)}


@pytest.mark.parametrize("scheme", ["nvfp4-modelopt", "nvfp4-compressed"])
def test_mxfp4_becomes_nvfp4_with_every_value_the_same(scheme: str) -> None:
    tensors = mxfp4(torch.randint(104, 122, (40, 6)))
    source = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()})
    made = quantize(source, scheme)
    codes = "q.weight" if scheme == "nvfp4-modelopt" else "q.weight_packed"
    assert torch.equal(made[codes].materialize(), tensors["q.weight_packed"])
    assert made.config is not None
    before, after = (dequantize(checkpoint, "f32")["q.weight"].materialize() for checkpoint in (source, made))
    assert torch.equal(before, after)
    assert torch.equal(
        made["q.weight_scale"][3:30:2, 1:9:3].materialize().float(),
        made["q.weight_scale"].materialize().float()[3:30:2, 1:9:3],
    )


def test_mxfp4_that_nvfp4_cannot_hold() -> None:
    exponents = torch.full((2, 2), 120)
    exponents[0, 1] = 120 - 18
    tensors = mxfp4(exponents)
    source = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()})
    with pytest.raises(LayoutError, match=r"q\.weight: 1 of 4 groups have scales more than 2 \*\* 17 below"):
        quantize(source, "nvfp4-modelopt")
    tensors["q.weight_packed"][0, 16:] = 0x80  # zeros need no scale
    source = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()})
    made = quantize(source, "nvfp4-modelopt")
    assert torch.equal(
        dequantize(made, "f32")["q.weight"].materialize(), dequantize(source, "f32")["q.weight"].materialize()
    )


def test_names_of_modelopt_and_compressed_tensors() -> None:
    state: dict[str, Any] = {
        "q.weight": torch.randint(0, 256, (8, 16), dtype=torch.uint8),
        "q.weight_scale": torch.rand(8, 2).to(torch.float8_e4m3fn),
        "q.weight_scale_2": torch.tensor(0.0123),
        "q.input_scale": torch.tensor(0.7),
    }
    source = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in state.items()})
    there = quantize(source, "nvfp4-compressed")
    assert sorted(there) == ["q.input_global_scale", "q.weight_global_scale", "q.weight_packed", "q.weight_scale"]
    assert torch.equal(there["q.weight_global_scale"].materialize(), 1 / state["q.weight_scale_2"].reshape(1))
    assert there["q.weight_packed"] is source["q.weight"]
    back = quantize(there, "nvfp4-modelopt")
    for key, tensor in state.items():
        assert torch.equal(bits(back[key].reshape(-1).materialize()), bits(tensor.reshape(-1))), key
    with pytest.raises(LayoutError, match=r"quantised already .nvfp4-modelopt., and fp8-blocks cannot take its codes"):
        quantize(source, "fp8-blocks")


def test_no_float32_is_a_better_reciprocal_whatever_the_significand() -> None:
    """There and back is the same number wherever any reciprocal would come back to it, and one unit off elsewhere."""
    numbers = torch.arange(0x3F800000, 0x40000000, dtype=torch.int32).view(torch.float32)
    there = 1.0 / numbers
    comes_back = 1.0 / there == numbers
    for bound in (0.0, 4.0):
        assert not ((1.0 / torch.nextafter(there, torch.tensor(bound)) == numbers) & ~comes_back).any()
    assert comes_back[numbers <= 2.0**0.5].all()
    assert 0.17 < 1 - comes_back.double().mean() < 0.18
    off = (1.0 / there).view(torch.int32) - numbers.view(torch.int32)
    assert off.abs().max() == 1
    for low in (12.0, 0.875):  # scales of groups: values are within one unit in the last place of float32
        ours, theirs = (low * numbers).view(torch.int32), (low / there).view(torch.int32)
        assert (ours - theirs).abs().max() <= 1


@pytest.mark.parametrize(("number", "inverts"), [(0.75, True), (1.4142135, True), (1.9999999, False), (0.0, True)])
def test_a_global_scale_is_said_to_be_rounded_where_it_is(number: float, inverts: bool, tmp_path: Path) -> None:
    parts = {"q.weight": torch.randint(0, 256, (4, 16), dtype=torch.uint8)}
    parts |= {"q.weight_scale": torch.ones(4, 2).to(torch.float8_e4m3fn), "q.weight_scale_2": torch.tensor(number)}
    source = lazysd.Checkpoint({key: lazysd.from_torch(part) for key, part in parts.items()})
    made = quantize(source, "nvfp4-compressed")
    assert bool(made.plan().lossy) is not inverts
    made.save(tmp_path / "there")
    back = quantize(lazysd.open(tmp_path / "there"), "nvfp4-modelopt")["q.weight_scale_2"].materialize()
    assert torch.equal(back.view(torch.int32), parts["q.weight_scale_2"].view(torch.int32)) is inverts
    tiny = source.like({**source, "q.weight_scale_2": lazysd.from_torch(torch.tensor(1e-39))})
    with pytest.raises(LayoutError, match=r"q\.weight: its global scale, 1e-39, has no reciprocal in float32"):
        quantize(tiny, "nvfp4-compressed")


def test_what_compressed_tensors_says_of_what_it_takes_from_modelopt() -> None:
    """Activations are quantised where scales of them are there, as its own converter states."""
    from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import ModelOptNvfp4Converter
    from compressed_tensors.quantization import QuantizationConfig

    parts = {"q.weight": torch.randint(0, 256, (4, 16), dtype=torch.uint8), "q.weight_scale_2": torch.tensor(0.5)}
    parts |= {"q.weight_scale": torch.ones(4, 2).to(torch.float8_e4m3fn), "q.input_scale": torch.tensor(0.25)}
    parts |= {"q.k_scale": torch.tensor(0.5)}
    config = {"quantization_config": {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}}
    source = lazysd.Checkpoint({key: lazysd.from_torch(part) for key, part in parts.items()}, config=config)
    converter = ModelOptNvfp4Converter(targets=["re:.*q$"])
    (theirs,) = converter._build_quant_config().config_groups.values()
    made = quantize(source, "nvfp4-compressed")
    for key, tensor in converter.process(dict(parts)).items():
        assert torch.equal(
            made[key].reshape(-1).materialize().view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        ), key
    (ours,) = QuantizationConfig.model_validate((made.config or {})["quantization_config"]).config_groups.values()
    for side in ("weights", "input_activations"):
        told, wanted = getattr(ours, side), getattr(theirs, side)
        for name in ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic"):
            assert getattr(told, name) == getattr(wanted, name), (side, name)
    assert any("'q.k_scale': kept, though quantization_config says no more" in text for text in made.remarks)
    alone = quantize(source.drop("*.input_scale", "*.k_scale"), "nvfp4-compressed")
    assert "input_activations" not in (alone.config or {})["quantization_config"]["config_groups"]["group_0"]
    assert not alone.remarks

"""Whole quantised checkpoints: found, decoded, refused by name, with the config.json that the result has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_experts import experts
from safetensors.torch import save_file

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError
from lazysd.quantization import dequantize


def folder(path: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def nvfp4(module: str) -> dict[str, torch.Tensor]:
    return {
        f"{module}.weight": torch.randint(0, 256, (8, 16), dtype=torch.uint8),
        f"{module}.weight_scale": torch.rand(8, 2).to(torch.float8_e4m3fn),
        f"{module}.weight_scale_2": torch.tensor(0.01),
        f"{module}.input_scale": torch.tensor(1.0),
    }


def test_config_json_of_decoded_weights(tmp_path: Path) -> None:
    tensors = nvfp4("model.layers.0.mlp.up_proj") | {"model.norm.weight": torch.ones(8)}
    said = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    source = folder(tmp_path / "a", tensors, model_type="x", torch_dtype="float16", quantization_config=said)
    (source / "hf_quant_config.json").write_text(json.dumps({"quantization": said}))
    plain = dequantize(lazysd.open(source), "f32")
    assert {key: (node.code, node.dims) for key, node in plain.items()} == {
        "model.layers.0.mlp.up_proj.weight": ("F32", (8, 32)),
        "model.norm.weight": ("F32", (8,)),
    }
    plain.save(tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"model_type": "x", "torch_dtype": "float32"}
    assert not (tmp_path / "out/hf_quant_config.json").exists()


def test_what_a_part_of_config_json_says(tmp_path: Path) -> None:
    said = {"quant_method": "fp8", "weight_block_size": [4, 8]}
    tensors = {"a.weight": torch.randn(6, 8).to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.rand(2, 1)}
    source = folder(tmp_path / "a", tensors, text_config={"n": 1, "quantization_config": said})
    plain = dequantize(lazysd.open(source))
    wanted = tensors["a.weight"].float() * tensors["a.weight_scale_inv"].repeat_interleave(4, 0)[:6]
    assert torch.equal(plain["a.weight"].materialize(), wanted.bfloat16())
    assert plain.config == {"text_config": {"n": 1}, "dtype": "bfloat16"}


@pytest.mark.parametrize("method", ["bitsandbytes", "hqq"])
def test_formats_that_are_not_decoded_are_named_and_carried(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {"a.weight": torch.randint(0, 256, (32, 1), dtype=torch.uint8), "b.weight": torch.ones(2)}
    if method == "bitsandbytes":
        tensors |= {"a.weight.absmax": torch.rand(1), "a.weight.quant_map": torch.rand(16)}
        tensors |= {"a.weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)}
    source = folder(tmp_path / "a", tensors, quantization_config={"quant_method": method})
    with pytest.raises(LayoutError, match=method):
        dequantize(lazysd.open(source))
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "hf", "--dtype", "bf16"]) == 3
    assert method in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    lazysd.open(source).save(tmp_path / "out")
    for key, node in lazysd.open(tmp_path / "out").items():
        assert torch.equal(node.materialize(), tensors[key])


def test_pieces_of_a_weight_that_are_missing() -> None:
    from lazysd.quantization import decode_tensors

    tensors = nvfp4("q")
    without = {key: tensor for key, tensor in tensors.items() if not key.endswith("scale_2")}
    with pytest.raises(LayoutError, match=r"q\.weight has scales, but is U8 and not FP8 or I8"):
        decode_tensors(without, "BF16", {})
    packed = {"q.qweight": torch.zeros(4, 8, dtype=torch.int32), "q.scales": torch.ones(1, 8)}
    with pytest.raises(LayoutError, match=r"q\.qweight means nothing without q\.qzeros, missing here"):
        decode_tensors(packed, "BF16", {})
    with pytest.raises(LayoutError, match=r"stands for q\.weight, which is there as well"):
        decode_tensors(
            packed | {"q.qzeros": torch.zeros(1, 1, dtype=torch.int32), "q.weight": torch.ones(1)}, "BF16", {}
        )
    with pytest.raises(LayoutError, match=r"m_blocks means nothing without m_scales"):
        decode_tensors({"m_blocks": torch.zeros(1, dtype=torch.uint8)}, "BF16", {"quant_method": "mxfp4"})
    assert list(decode_tensors({"m_blocks": torch.zeros(1)}, "BF16", {})) == ["m_blocks"]


def test_slices_read_their_own_codes_and_scales(tmp_path: Path) -> None:
    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8)
    scales = torch.full((2, 6, 3), 120, dtype=torch.uint8)
    tensors = {"x.down_proj_blocks": blocks, "x.down_proj_scales": scales}
    source = folder(tmp_path / "a", tensors, quantization_config={"quant_method": "mxfp4"})
    plain = dequantize(lazysd.open(source))["x.down_proj"]
    assert plain.dims == (2, 96, 6)
    assert sum(nbytes for _, _, nbytes in plain.reads()) == blocks.numel() + scales.numel()
    part = plain[1, 32:64, 2]
    assert [nbytes for _, _, nbytes in part.reads()] == [16, 1]
    assert torch.equal(part.materialize(), plain.materialize()[1, 32:64, 2])
    assert [nbytes for _, _, nbytes in plain[0, 95:, 5].reads()] == [1, 1]


def test_encoding_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "model.layers.0.mlp.experts.{}.{}_proj.weight"
    tensors = {key.format(e, g): torch.randn(32, 64) for e in range(2) for g in ("gate", "up")}
    tensors |= {key.format(e, "down"): torch.randn(64, 32) for e in range(2)}
    source = folder(tmp_path / "a", tensors, model_type="qwen3_moe", num_experts=2)
    args = ["convert", str(source), str(tmp_path / "out"), "--to", "hf", "--verify", "--quantize"]
    assert main([*args, "mxfp4-compressed"]) == 0
    assert "lossy: quantise f32 -> mxfp4 (6 tensors)" in capsys.readouterr().err
    made = lazysd.open(tmp_path / "out")
    assert made[key.format(1, "down").replace("weight", "weight_packed")].dims == (64, 16)
    assert made.config["quantization_config"]["format"] == "mxfp4-pack-quantized"
    assert dequantize(made).keys() == tensors.keys()
    assert main([*args, "fp3"]) != 0
    assert "unknown scheme 'fp3'" in capsys.readouterr().err


def test_a_look_alike_is_named_and_carried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A method that nobody here knows is not decoded by the names of another's tensors."""
    key = "model.layers.0.mlp.experts.{}.{}_proj.weight"
    tensors = {}
    for e, g in ((e, g) for e in range(2) for g in ("gate", "up", "down")):
        shape = (64, 32) if g == "down" else (32, 64)
        tensors[key.format(e, g)] = torch.randn(shape).to(torch.float8_e4m3fn)
        tensors[key.format(e, g) + "_scale"] = torch.rand(shape[0], 1)
    said = {"quant_method": "inverse-fp8"}
    sizes = {"num_experts": 2, "hidden_size": 64, "moe_intermediate_size": 32}
    source = folder(tmp_path / "a", tensors, model_type="qwen3_moe", quantization_config=said, **sizes)
    named = "quant_method 'inverse-fp8', which lazysd does not know"
    with pytest.raises(LayoutError, match=named):
        dequantize(lazysd.open(source))
    for args in (["--dtype", "bf16"], ["--to", "vllm"], ["--quantize", "mxfp4-compressed"]):
        assert main(["convert", str(source), str(tmp_path / "out"), *args]) == 3
        assert named in capsys.readouterr().err
    assert main(["inspect", str(source)]) == 0
    assert named in "".join(capsys.readouterr())
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    made = lazysd.open(tmp_path / "out")
    assert made.config["quantization_config"] == said  # type: ignore[index]
    assert all(
        torch.equal(made[key].materialize().view(torch.uint8), t.view(torch.uint8)) for key, t in tensors.items()
    )


@pytest.mark.parametrize("backwards", [False, True])
def test_a_weight_that_is_scaled_twice_is_refused(backwards: bool) -> None:
    """Whichever comes first, neither is taken, and neither is left beside what the other decodes."""
    scales = {"a.weight_scale": torch.ones(32, 1), "a.weight_scale_inv": torch.ones(1, 1)}
    tensors = {"a.weight": torch.zeros(32, 32).to(torch.float8_e4m3fn)} | dict(
        sorted(scales.items(), reverse=backwards)
    )
    for method in ("fp8", "compressed-tensors", "modelopt"):
        config = {"quantization_config": {"quant_method": method}}
        source = lazysd.Checkpoint({key: lazysd.from_torch(t) for key, t in tensors.items()}, config=config)
        with pytest.raises(
            LayoutError, match=r"a\.weight is scaled twice, by a\.weight_scale\S* .* and a\.weight_scale"
        ):
            dequantize(source)


def test_scales_of_a_cache_are_kept_and_remarked(tmp_path: Path) -> None:
    tensors = nvfp4("model.layers.0.mlp.up_proj") | {"model.layers.0.self_attn.k_proj.k_scale": torch.tensor(0.5)}
    said = {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}
    source = folder(tmp_path / "a", tensors, model_type="x", quantization_config=said)
    plain = dequantize(lazysd.open(source))
    assert torch.equal(plain["model.layers.0.self_attn.k_proj.k_scale"].materialize(), torch.tensor(0.5))
    (remark,) = plain.remarks
    assert remark.startswith("'model.layers.0.self_attn.k_proj.k_scale': kept, though no config.json says any more")
    assert not dequantize(lazysd.open(source).drop("*.k_scale")).remarks


@pytest.mark.parametrize("name", ["int4", "mxfp4", "nvfp4 compressed", "8-bit a row"])
def test_inspect_says_why_of_packed_weights_too(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, config = experts(name, E=3)
    source = folder(tmp_path / "a", tensors, **config)
    for path, layout in ((source, "hf"), (tmp_path / "b", "vllm")):
        if layout == "vllm":
            assert main(["convert", str(source), str(path), "--to", layout]) == 0
        capsys.readouterr()
        assert main(["inspect", str(path)]) == 0
        shown = capsys.readouterr().out
        assert f"layout   {layout} (qwen3_moe)" in shown
        assert "because  model_type 'qwen3_moe' of config.json; config.json states 3 experts" in shown
        assert "config.json states 3 experts" in lazysd.open(path)._repr_html_()

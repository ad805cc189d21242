"""FP8 in blocks: to and from transformers' own bits, short blocks at the edge, and whole checkpoints."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError
from lazysd.graph.base import Piece
from lazysd.graph.boxes import box_dims, covers_once, row_major
from lazysd.graph.rewrite import build
from lazysd.move.tiling import compute_tiles
from lazysd.nemo.adapter import Qwen3MoeStateDictAdapter
from lazysd.quant.fp8_encoding import QuantizeScale, QuantizeWeight
from lazysd.quant.scaled import Dequantize
from lazysd.quantization import dequantize

FP8 = torch.float8_e4m3fn
KEY = "model.layers.0.mlp.experts.{}.{}_proj.weight"


def transformers_fp8(block: tuple[int, int], scale_fmt: str = "float") -> tuple[Any, Any]:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    config = SimpleNamespace(weight_block_size=list(block), scale_fmt=scale_fmt)
    quantizer = SimpleNamespace(quantization_config=config)
    return Fp8Quantize(quantizer), Fp8Dequantize(quantizer)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def quantized_by_hand(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Block by block in plain torch: (codes, inverse scales)."""
    rows, columns = (range(0, size, step) for size, step in zip(weight.shape, block, strict=True))
    codes = torch.empty(weight.shape, dtype=FP8)
    inverse = torch.empty(len(rows), len(columns))
    for m, r in enumerate(rows):
        for n, c in enumerate(columns):
            part = weight[r : r + block[0], c : c + block[1]].float()
            scale = 448.0 / part.abs().max() if part.abs().max() > 0 else torch.tensor(1.0)
            inverse[m, n] = 1.0 / scale
            codes[r : r + block[0], c : c + block[1]] = (part * scale).to(FP8)
    return codes, inverse


def by_hand(codes: torch.Tensor, inverse: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    factors = inverse.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return codes.float() * factors[: codes.shape[0], : codes.shape[1]]


@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantising_equals_transformers(dtype: torch.dtype, scale_fmt: str) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(256, 384) * torch.logspace(-6, 3, 384)).to(dtype)
    weight[:128, :128] = 0
    theirs = transformers_fp8((128, 128), scale_fmt)[0].convert({"x.weight": weight})
    code = "F32" if scale_fmt == "float" else "F8_E8M0"
    node = lazysd.from_torch(weight)
    ours = build(QuantizeWeight((128, 128), code), (node,)).materialize()
    scale = build(QuantizeScale((128, 128), code), (node,)).materialize()
    assert ours.dtype == FP8
    assert scale.dtype == theirs["x.weight_scale_inv"].dtype
    assert torch.equal(bits(scale), bits(theirs["x.weight_scale_inv"]))
    assert torch.equal(bits(ours), bits(theirs["x.weight"]))


@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
def test_dequantising_equals_transformers(scale_fmt: str) -> None:
    torch.manual_seed(1)
    quantize, restore = transformers_fp8((128, 128), scale_fmt)
    pair = quantize.convert({"x.weight": torch.randn(256, 384)})
    weight, scale = pair["x.weight"], pair["x.weight_scale_inv"]
    wanted = restore._dequantize_one(weight, scale, output_dtype=torch.bfloat16)
    nodes = lazysd.from_torch(weight), lazysd.from_torch(scale)
    assert torch.equal(build(Dequantize((128, 128), "BF16"), nodes).materialize(), wanted)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3), (129, 130), (1, 1), (300, 128)])
@pytest.mark.parametrize("block", [(4, 3), (128, 128), (1, 32)])
def test_short_blocks_at_the_edge(shape: tuple[int, int], block: tuple[int, int]) -> None:
    torch.manual_seed(2)
    weight = torch.randn(shape)
    node = lazysd.from_torch(weight)
    codes, inverse = quantized_by_hand(weight, block)
    made = build(QuantizeWeight(block, "F32"), (node,))
    scales = build(QuantizeScale(block, "F32"), (node,))
    assert torch.equal(bits(made.materialize()), bits(codes))
    assert torch.equal(scales.materialize(), inverse)
    back = build(Dequantize(block, "F32"), (made, scales))
    assert torch.equal(back.materialize(), by_hand(codes, inverse, block))
    for part in ((slice(1, None, 2), slice(None)), (slice(None), slice(2, 5)), (slice(-1, None), slice(0, None, 3))):
        assert torch.equal(bits(made[part].materialize()), bits(codes[part]))
        assert torch.equal(scales[part].materialize(), inverse[part])
        assert torch.equal(back[part].materialize(), by_hand(codes, inverse, block)[part])


def test_large_weights_are_quantised_tile_by_tile() -> None:
    weight = torch.randn(1000, 3000)
    codes, inverse = quantized_by_hand(weight, (128, 128))
    node = lazysd.from_torch(weight)
    assert torch.equal(bits(build(QuantizeWeight((128, 128), "F32"), (node,)).materialize()), bits(codes))
    assert torch.equal(build(QuantizeScale((128, 128), "F32"), (node,)).materialize(), inverse)


@pytest.mark.parametrize("shape", [(1000, 3000), (256, 7168), (3, 300, 18432)])
def test_no_block_is_looked_at_for_one_row_after_the_other(shape: tuple[int, ...]) -> None:
    """Tiles that a budget makes small hold whole blocks: all their operands together are the weight, once."""
    node = build(QuantizeWeight((128, 128), "F32"), (lazysd.from_torch(torch.empty(shape)),))
    whole = tuple(range(size) for size in shape)
    parts = compute_tiles(Piece(node, whole, 0, row_major(shape)))
    assert len(parts) > 1
    wanted = [box for part in parts for _, box in node.op.operands(node, part.box)]  # type: ignore[attr-defined]
    assert sum(prod(box_dims(box)) for box in wanted) == prod(shape)
    assert all(len(compute_tiles(part)) == 1 for part in parts)
    assert covers_once([part.box for part in parts], shape)


def fp8_checkpoint(folder: Path, block: tuple[int, int] = (16, 8), scale: torch.dtype = torch.float32) -> Path:
    """Three experts of H=20, I=12 with attention, quantised in blocks that do not divide them."""
    torch.manual_seed(3)
    tensors = {"model.embed_tokens.weight": torch.randn(5, 20).bfloat16()}
    names = [KEY.format(e, g) for e in range(3) for g in ("gate", "up", "down")]
    for name in [*names, "model.layers.0.self_attn.q_proj.weight"]:
        shape = (20, 12) if "down" in name else (12, 20)
        tensors[name], inverse = quantized_by_hand(torch.randn(shape), block)
        tensors[name + "_scale_inv"] = inverse.to(scale)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantized = {"quant_method": "fp8", "weight_block_size": list(block), "activation_scheme": "dynamic"}
    config = {"model_type": "qwen3_moe", "num_experts": 3, "hidden_size": 20, "quantization_config": quantized}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("scale", [torch.float32, torch.float8_e8m0fnu])
def test_a_checkpoint_converts_to_nemo(tmp_path: Path, scale: torch.dtype) -> None:
    source = lazysd.open(fp8_checkpoint(tmp_path / "fp8", scale=scale))
    plain = dequantize(source)
    assert not [key for key in plain if key.endswith("_scale_inv")]
    native = plain.convert("nemo")
    raw = {key: node.materialize() for key, node in source.items()}

    def weight(name: str) -> torch.Tensor:
        return by_hand(raw[name], raw[name + "_scale_inv"], (16, 8)).bfloat16()

    for e in range(3):
        both = torch.cat([weight(KEY.format(e, g)) for g in ("gate", "up")])
        assert torch.equal(native["model.layers.0.mlp.experts.gate_and_up_projs"][e].materialize(), both.T)
    assert native["model.embed_tokens.weight"] is source["model.embed_tokens.weight"]
    native.save(tmp_path / "out")
    written = lazysd.open(tmp_path / "out")
    assert "quantization_config" not in written.config
    assert written.config["num_experts"] == 3
    down = torch.stack([weight(KEY.format(e, "down")).T for e in range(3)])
    assert torch.equal(written["model.layers.0.mlp.experts.down_projs"].materialize(), down)
    assert dequantize(written).keys() == written.keys()


def test_pairs_that_are_none(tmp_path: Path) -> None:
    source = lazysd.open(fp8_checkpoint(tmp_path / "fp8"))
    scale = KEY.format(1, "up") + "_scale_inv"
    with pytest.raises(
        LayoutError, match=r"experts\.1\.up_proj\.weight means nothing without .*_scale_inv, missing here"
    ):
        dequantize(source.drop(scale))
    with pytest.raises(LayoutError, match=r"experts\.1\.up_proj.*scales whose weight is missing"):
        dequantize(source.drop(KEY.format(1, "up")))
    with pytest.raises(LayoutError, match=r"blocks of \[16, 8\] needs scales \[1, 3\], got \[2, 3\]"):
        dequantize(source | {scale: torch.ones(2, 3)})
    with pytest.raises(LayoutError, match="is BF16 and not FP8"):
        dequantize(source | {KEY.format(1, "up"): torch.ones(12, 20).bfloat16()})


def adapter(E: int = 3, I: int = 12, dtype: torch.dtype = torch.bfloat16, block: list[int] | None = None) -> Any:  # noqa: E741
    moe = SimpleNamespace(n_routed_experts=E, moe_inter_dim=I, expert_activation="swiglu")
    config = {} if block is None else {"quantization_config": {"weight_block_size": block}}
    return Qwen3MoeStateDictAdapter(config, moe, None, dtype)


@pytest.mark.parametrize("lazy", [True, False])
def test_the_adapter_dequantises_pairs(tmp_path: Path, lazy: bool) -> None:
    source = lazysd.open(fp8_checkpoint(tmp_path / "fp8"))
    given = source if lazy else {key: node.materialize() for key, node in source.items()}
    native = adapter(block=[16, 8]).from_hf(given)
    wanted = dequantize(source).convert("nemo")
    assert sorted(native) == sorted(wanted)
    for key, node in wanted.items():
        made = native[key].materialize() if lazy else native[key]
        assert torch.equal(bits(made), bits(node.materialize())), key


@pytest.mark.parametrize("lazy", [True, False])
def test_the_adapter_quantises_as_transformers_does(lazy: bool) -> None:
    E, H, I = 2, 256, 128  # noqa: E741
    torch.manual_seed(4)
    native: dict[str, Any] = {
        "model.layers.0.mlp.experts.gate_and_up_projs": torch.randn(E, H, 2 * I).bfloat16(),
        "model.layers.0.mlp.experts.down_projs": torch.randn(E, I, H).bfloat16(),
        "model.layers.0.self_attn.o_proj.weight": torch.randn(H, H).bfloat16(),
        "model.layers.0.self_attn.q_norm.weight": torch.randn(H).bfloat16(),
        "model.layers.0.mlp.gate.weight": torch.randn(E, H).bfloat16(),
        "lm_head.weight": torch.randn(256, H).bfloat16(),
    }
    ours = adapter(E, I)
    plain = ours.to_hf(native)
    quantize = transformers_fp8((128, 128))[0]
    wanted = {}
    for key, tensor in plain.items():
        is_fp8 = ".experts." in key or "o_proj" in key
        wanted |= quantize.convert({key: tensor}) if is_fp8 else {key: tensor}
    given = {key: lazysd.from_torch(tensor) for key, tensor in native.items()} if lazy else native
    made = ours.to_hf(given, quantization=True)
    assert sorted(made) == sorted(wanted)
    for key, tensor in wanted.items():
        here = made[key].materialize() if lazy else made[key]
        assert here.dtype == tensor.dtype
        assert torch.equal(bits(here), bits(tensor)), key
    restored = ours.from_hf(made)
    reference = restored["model.layers.0.mlp.experts.down_projs"]
    reference = reference.materialize() if lazy else reference
    error = (reference.float() - native["model.layers.0.mlp.experts.down_projs"].float()).abs().max()
    assert 0 < error < 0.2


def test_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fp8_checkpoint(tmp_path / "fp8")
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "nemo"]) == 3
    assert "weight_scale_inv" in (said := capsys.readouterr().err)
    assert "decode the weights first: --dtype bf16" in said
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "nemo", "--dtype", "bf16", "--verify"]) == 0
    assert "lossy: dequantise f8e4m3 -> bf16 (10 tensors)" in capsys.readouterr().err
    expected, found = dequantize(lazysd.open(source)).convert("nemo"), lazysd.open(tmp_path / "out")
    assert {key: t.code for key, t in found.items()} == dict.fromkeys(expected, "BF16")
    for key, node in expected.items():
        assert torch.equal(found[key].materialize(), node.materialize())
    args = ["plan", str(source), "--to", "nemo", "--dtype", "bf16", "--exclude", "*scale_inv"]
    assert main(args) == 3
    assert "weight_scale_inv, missing here" in capsys.readouterr().err


@pytest.mark.parametrize("code", ["F32", "F8_E8M0"])
@pytest.mark.parametrize("largest", [1e-45, 1e-42, 1e-39, 1.3e-36, 2e-36, 1e-30])
def test_zeros_stay_zero_in_tiny_blocks(largest: float, code: str) -> None:
    """448 / largest overflows below 1.3e-36; infinity times zero would be NaN."""
    weight = torch.zeros(4, 6)
    weight[0, 0], weight[1, 2] = largest, -largest / 2
    node = lazysd.from_torch(weight)
    codes, scale = build(QuantizeWeight((4, 3), code), (node,)), build(QuantizeScale((4, 3), code), (node,))
    back = by_hand(codes.materialize(), scale.materialize(), (4, 3))
    assert back.eq(0)[weight.eq(0)].all()
    assert (back - weight).abs().max() <= max(largest / 16, 2.0**-127 * 2**-10)

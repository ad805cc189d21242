"""Decoding few-bit weights: every code times every scale, and the bits of the libraries that write the formats."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lazysd
from lazysd.errors import FormatError, LayoutError
from lazysd.graph.rewrite import build
from lazysd.quant import registry
from lazysd.quant.codes import FP4_VALUES
from lazysd.quant.nibbles import DecodeNibbles
from lazysd.quant.scaled import Dequantize
from lazysd.quant.words import PickRows, Unpack
from lazysd.quantization import decode_tensors

FP4 = torch.tensor(FP4_VALUES)
INT_OF = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
CODES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Bit for bit; NaN is NaN whatever its payload."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    a, b = ours.contiguous(), theirs.contiguous()
    nan = a.isnan() & b.isnan()
    return bool(((a.view(INT_OF[a.dtype]) == b.view(INT_OF[b.dtype])) | nan).all())


def decoded(tensors: dict[str, torch.Tensor], code: str = "BF16", **settings: Any) -> dict[str, Any]:
    return decode_tensors(tensors, code, settings)


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()


@pytest.mark.parametrize("code", CODES)
def test_every_nibble_times_every_exponent(code: str) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.arange(16, dtype=torch.uint8) * 17  # each byte holds one nibble twice
    tensors = {
        "a.gate_up_proj_blocks": blocks.expand(1, 256, 4, 16).contiguous(),
        "a.gate_up_proj_scales": torch.arange(256, dtype=torch.uint8).view(1, 256, 1).expand(1, 256, 4).contiguous(),
    }
    made = decoded(tensors, code, quant_method="mxfp4")
    assert list(made) == ["a.gate_up_proj"]
    wanted = convert_moe_packed_tensors(*tensors.values(), dtype=CODES[code])
    assert wanted.shape == (1, 128, 256)
    assert same(made["a.gate_up_proj"].materialize(), wanted)
    whole = FP4[nibbles(tensors["a.gate_up_proj_blocks"])].flatten(-2).double()
    plain = whole * 2.0 ** (torch.arange(256).double() - 127).view(1, 256, 1)
    finite = plain.abs() < 3e38
    assert torch.equal(made["a.gate_up_proj"].materialize().transpose(1, 2)[finite], plain.to(CODES[code])[finite])


@pytest.mark.parametrize("divides", [False, True])
@pytest.mark.parametrize("code", CODES)
def test_every_nibble_times_every_e4m3_scale(code: str, divides: bool) -> None:
    packed = (torch.arange(16, dtype=torch.uint8) * 17).repeat_interleave(8).expand(256, 128).contiguous()
    scale = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(256, 1).expand(256, 16).contiguous()
    total = torch.tensor([0.0173])
    op = DecodeNibbles(FP4_VALUES, 2, 16, code, divides=divides)
    node = build(op, [lazysd.from_torch(part) for part in (packed, scale, total)])
    factors = scale.float() / total if divides else scale.float() * total
    wanted = (FP4[nibbles(packed)] * factors.repeat_interleave(16, 1)).to(CODES[code])
    assert same(node.materialize(), wanted)  # large enough for the table of pairs
    assert same(torch.cat([node[k : k + 1].materialize() for k in range(256)]), wanted)  # too small for it


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.int8])
def test_every_eight_bit_code(kind: torch.dtype) -> None:
    weight = torch.arange(256, dtype=torch.uint8).view(kind).view(16, 16)
    scale = torch.tensor([[0.37, 2.0**-130], [3e38, float("inf")]])
    node = build(Dequantize((8, 8), "F32"), [lazysd.from_torch(weight), lazysd.from_torch(scale)])
    wanted = weight.float() * scale.repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert same(node.materialize(), wanted)


def mxfp4(E: int = 2, R: int = 6, G: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "m.down_proj_blocks": torch.randint(0, 256, (E, R, G, 16), dtype=torch.uint8),
        "m.down_proj_scales": torch.randint(100, 140, (E, R, G), dtype=torch.uint8),
    }


def test_mxfp4_under_its_original_names() -> None:
    blocks, scales = mxfp4().values()
    made = decoded({"block.0.mlp1_weight.blocks": blocks, "block.0.mlp1_weight.scales": scales}, "F32")
    transposed = decoded(mxfp4(), "F32")["m.down_proj"].materialize()
    assert torch.equal(made["block.0.mlp1_weight"].materialize(), transposed.transpose(1, 2))


def compressed(kind: str, weights: dict[str, Any], state: dict[str, torch.Tensor]) -> torch.Tensor:
    """What compressed-tensors decompresses the tensors of one module to."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    return BaseCompressor.get_value_from_registry(kind).decompress(dict(state), scheme)["weight"]


def settings(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


def nvfp4(R: int = 40, C: int = 96) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "weight_packed": torch.randint(0, 256, (R, C // 2), dtype=torch.uint8),
        "weight_scale": (torch.rand(R, C // 16) * 400).to(torch.float8_e4m3fn),
        "weight_global_scale": torch.tensor([2731.7]),
    }


def at(module: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{module}.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("rows", [40, 2100])
def test_nvfp4_equals_compressed_tensors(rows: int) -> None:
    state = nvfp4(rows)
    args = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
    wanted = compressed("nvfp4-pack-quantized", args, state)
    made = decoded(at("q", state), **settings(**args))
    assert list(made) == ["q.weight"]
    assert same(made["q.weight"].materialize(), wanted)


def test_nvfp4_of_modelopt_multiplies_by_its_global_scale() -> None:
    state = nvfp4()
    total = 1 / state["weight_global_scale"]
    theirs = {"weight": state["weight_packed"], "weight_scale": state["weight_scale"], "weight_scale_2": total[0]}
    made = decoded(at("q", theirs), "F32", quant_method="modelopt")["q.weight"].materialize()
    wanted = FP4[nibbles(state["weight_packed"])] * (state["weight_scale"].float() * total).repeat_interleave(16, 1)
    assert torch.equal(made, wanted)
    swapped = theirs | {"weight_scale_2": state["weight_global_scale"][0]}
    wrong = decoded(at("q", swapped), "F32", quant_method="modelopt")["q.weight"].materialize()
    assert wrong.abs().max() > 1e6 * made.abs().max()
    ours = decoded(at("q", state), "F32")["q.weight"].materialize()
    assert torch.allclose(ours, made, rtol=1e-6, atol=0)


def test_mxfp4_equals_compressed_tensors() -> None:
    torch.manual_seed(2)
    state = {
        "weight_packed": torch.randint(0, 256, (24, 64), dtype=torch.uint8),
        "weight_scale": torch.randint(90, 150, (24, 4), dtype=torch.uint8),
    }
    args = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True}
    wanted = compressed("mxfp4-pack-quantized", args, state)
    assert same(decoded(at("q", state), **settings(**args))["q.weight"].materialize(), wanted)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(("columns", "group"), [(96, 32), (96, None), (72, 24), (77, None), (61, None)])
def test_packed_integers_equal_compressed_tensors(bits: int, symmetric: bool, columns: int, group: int | None) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    torch.manual_seed(bits)
    low, high, R = -(1 << (bits - 1)), 1 << (bits - 1), 20
    codes = torch.randint(low, high, (R, columns), dtype=torch.int8)
    scale = torch.rand(R, columns // group if group else 1).bfloat16()
    state = {
        "weight_packed": pack_to_int32(codes, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([R, columns]),
    }
    if not symmetric:
        zeros = torch.randint(low, high, scale.shape, dtype=torch.int8)
        state["weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0).contiguous()
    args = {"num_bits": bits, "type": "int", "strategy": "group" if group else "channel", "symmetric": symmetric}
    args |= {"group_size": group} if group else {}
    wanted = compressed("pack-quantized", args, state)
    made = decoded(at("q", state), **settings(**args))["q.weight"]
    assert same(made.materialize(), wanted)
    assert same(made[3:17:2, 5:71:3].materialize(), wanted[3:17:2, 5:71:3])


@pytest.mark.parametrize("kind", ["F8", "I8"])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group", "block"])
def test_eight_bits_equal_compressed_tensors(strategy: str, kind: str) -> None:
    torch.manual_seed(3)
    R, C = 64, 96
    shape = {"tensor": (1,), "channel": (R, 1), "group": (R, 3), "block": (4, 6)}[strategy]
    codes = (
        torch.randn(R, C).to(torch.float8_e4m3fn) if kind == "F8" else torch.randint(-128, 128, (R, C)).to(torch.int8)
    )
    state = {"weight": codes, "weight_scale": torch.rand(shape).bfloat16()}
    args: dict[str, Any] = {"num_bits": 8, "type": "float" if kind == "F8" else "int", "strategy": strategy}
    args |= {"symmetric": True}
    args |= {"group_size": 32} if strategy == "group" else {}
    args |= {"block_structure": [16, 16]} if strategy == "block" else {}
    wanted = compressed("naive-quantized", args, state)
    state["input_scale"] = torch.tensor([3.0])
    made = decoded(at("q", state), **settings(**args))
    assert list(made) == ["q.weight"]
    assert same(made["q.weight"].materialize(), wanted)


def packed_by_hand(codes: torch.Tensor, bits: int, axis: int, order: list[int] | None = None) -> torch.Tensor:
    """Integers into I32 words along an axis, bit by bit; `order` lists which element of a word comes first, second."""
    rows = codes.T if axis == 0 else codes
    words = []
    for row in rows.tolist():
        if order:
            row = [row[k - k % 8 + order[k % 8]] for k in range(len(row))]
        stream = sum(value << (bits * k) for k, value in enumerate(row))
        count = -(-len(row) * bits // 32)
        words.append([((stream >> (32 * k)) & 0xFFFFFFFF) for k in range(count)])
    made = torch.tensor(words, dtype=torch.int64)
    made = torch.where(made >= 1 << 31, made - (1 << 32), made).to(torch.int32)
    return (made.T if axis == 0 else made).contiguous()


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [True, False, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int, act_order: bool | None, version: str) -> None:
    torch.manual_seed(bits)
    R, C, group = 32, 96, 32
    codes = torch.randint(0, 1 << bits, (C, R))
    zeros = torch.randint(0, 1 << bits, (C // group, R))
    scales = torch.rand(C // group, R).half()
    index = torch.arange(C) // group
    index = index[torch.randperm(C)] if act_order else index
    stored = zeros if version == "gptq_v2" else (zeros - 1) % (1 << bits)
    state = {
        "qweight": packed_by_hand(codes, bits, 0),
        "qzeros": packed_by_hand(stored, bits, 1),
        "scales": scales,
    }
    if act_order is not None:
        state["g_idx"] = index.to(torch.int32)
    said = {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": version}
    made = decoded(at("q", state), "F16", **said)
    assert list(made) == ["q.weight"]
    wanted = (scales[index] * (codes - zeros[index]).half()).T
    assert same(made["q.weight"].materialize(), wanted)
    assert same(made["q.weight"][3:29:4, 7:80:5].materialize(), wanted[3:29:4, 7:80:5])


def test_awq_equals_the_converter_of_compressed_tensors() -> None:
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    torch.manual_seed(4)
    R, C, group = 48, 96, 32
    codes, zeros = torch.randint(0, 16, (C, R)), torch.randint(0, 16, (C // group, R))
    scales = torch.rand(C // group, R).half()
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    state = {
        "qweight": packed_by_hand(codes, 4, 1, order),
        "qzeros": packed_by_hand(zeros, 4, 1, order),
        "scales": scales,
    }
    said = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    made = decoded(at("q", state), "F16", **said)["q.weight"]
    wanted = (scales.repeat_interleave(group, 0) * (codes - zeros.repeat_interleave(group, 0)).half()).T
    assert same(made.materialize(), wanted)
    assert same(made[5:41:3, 30:70].materialize(), wanted[5:41:3, 30:70])
    theirs = AutoAWQConverter(group_size=group).process(at("q", state))
    args = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group, "symmetric": False}
    again = decoded(theirs, "F16", **settings(**args))["q.weight"]
    assert same(again.materialize(), wanted)


def test_an_index_that_leaves_the_table() -> None:
    table, index = lazysd.from_torch(torch.rand(3, 4)), lazysd.from_torch(torch.tensor([0, 3], dtype=torch.int32))
    with pytest.raises(FormatError, match="runs from 0 to 3, but there are 3 groups"):
        build(PickRows(), (table, index)).materialize()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_unpacking_any_stretch(bits: int, axis: int) -> None:
    torch.manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (5, 77))
    codes = codes.T.contiguous() if axis == 0 else codes
    words = lazysd.from_torch(packed_by_hand(codes, bits, axis))
    node = build(Unpack(bits, axis - 2, 77), (words,))
    assert torch.equal(node.materialize().long(), codes)
    for part in (slice(3, 50, 7), slice(76, 77), slice(0, 1), slice(31, 34)):
        where = (part, slice(None)) if axis == 0 else (slice(None), part)
        assert torch.equal(node[where].materialize().long(), codes[where])


def test_schemes_are_found_in_the_folder() -> None:
    names = [scheme.name for scheme in registry.schemes()]
    assert names == sorted(names)
    assert {"fp8-blocks", "mxfp4", "nvfp4-modelopt", "nvfp4-compressed", "int-packed", "gptq", "awq"} <= set(names)
    assert registry.get("gptq").name == "gptq"
    with pytest.raises(LayoutError, match="unknown scheme 'fp3'; there are 8-bit, awq"):
        registry.get("fp3")


@pytest.mark.parametrize("chunk", [1, 50, 200])
@pytest.mark.parametrize("block", [(1, 16), (1, 50), (3, 8), (7, 1), (40, 16)])
def test_what_is_decoded_at_a_time_changes_no_bit(
    chunk: int, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are decoded some rows at a time, in memory that is used again."""
    monkeypatch.setattr("lazysd.quant.kernels.eager.CHUNK", chunk)
    torch.manual_seed(chunk)
    R, C = 23, 50
    weight = torch.randint(0, 256, (2, R, C), dtype=torch.uint8)
    shape = (2, -(-R // block[0]), -(-C // block[1]))
    scale, zero = torch.rand(shape), torch.randint(0, 256, shape, dtype=torch.uint8)

    def spread(part: torch.Tensor) -> torch.Tensor:
        return part.float().repeat_interleave(block[0], 1)[:, :R].repeat_interleave(block[1], 2)[..., :C]

    wanted = ((weight.float() - spread(zero)) * spread(scale)).bfloat16()
    parts = [lazysd.from_torch(part) for part in (weight, scale, zero)]
    node = build(Dequantize(block, "BF16"), parts)
    assert same(node.materialize(), wanted)
    assert same(node.transpose(1, 2).materialize(), wanted.transpose(1, 2))
    for where in ((1, slice(2, 20, 3), slice(5, 47)), (0, slice(4, 5), slice(0, 50, 8)), (..., slice(3, 3))):
        assert same(node[where].materialize(), wanted[where])

"""Every few-bit format through the suite that all of them pass; and that broken ones fail it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from quantised_experts import compressed

from lazysd.graph.boxes import Box
from lazysd.graph.node import Node
from lazysd.graph.rewrite import build
from lazysd.quant import registry
from lazysd.quant.base import Parts, Scheme, Settings
from lazysd.quant.codes import FP4_VALUES
from lazysd.quant.eight_bits import EightBits
from lazysd.quant.fp8_blocks import Fp8Blocks
from lazysd.quant.mxfp4_compressed import Mxfp4Compressed
from lazysd.quant.nibbles import DecodeNibbles
from lazysd.quant.nvfp4_compressed import Nvfp4Compressed
from lazysd.quant.nvfp4_modelopt import decoded
from lazysd.quant.scaled import Dequantize
from lazysd.testing.conformance.schemes import SchemeSuite

FP4 = torch.tensor(FP4_VALUES)
Tensors = Mapping[str, torch.Tensor]


def u8(*dims: int) -> torch.Tensor:
    return torch.randint(0, 256, dims, dtype=torch.uint8)


def e4m3(*dims: int, extreme: bool) -> torch.Tensor:
    codes = u8(*dims) if extreme else torch.randint(0x20, 0x70, dims, dtype=torch.uint8)
    return codes.view(torch.float8_e4m3fn)


def number(*dims: int, extreme: bool) -> torch.Tensor:
    made = torch.rand(dims) + 0.5
    if extreme and made.numel() > 3:
        made.view(-1)[:3] = torch.tensor([0.0, float("inf"), float("nan")])
    return made


def spread(scale: torch.Tensor, rows: int, columns: int, dims: tuple[int, int]) -> torch.Tensor:
    return scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[: dims[0], : dims[1]]


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()


def words(columns: int, bits: int, *dims: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, (*dims, -(-columns * bits // 32)), dtype=torch.int32)


def unpacked(packed: torch.Tensor, bits: int, size: int) -> torch.Tensor:
    """Integers along the last axis, bit by bit."""
    stream = (packed.long().unsqueeze(-1) >> torch.arange(32)) & 1
    stream = stream.flatten(-2)[..., : size * bits].unflatten(-1, (size, bits))
    return (stream << torch.arange(bits)).sum(-1)


class TestFp8Blocks(SchemeSuite):
    scheme = registry.get("fp8-blocks")
    block: ClassVar[tuple[int, int]] = (16, 32)
    settings: ClassVar[Any] = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    shapes = ((32, 64), (37, 75))
    unread = frozenset({"activation_scale"})
    encodes = True
    dtype: ClassVar[torch.dtype] = torch.float32

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        counts = (-(-rows // self.block[0]), -(-columns // self.block[1]))
        scale = number(*counts, extreme=extreme).to(self.dtype)
        if self.dtype is torch.float8_e8m0fnu and not extreme:
            scale = torch.randint(120, 134, counts, dtype=torch.uint8).view(self.dtype)
        return {"codes": e4m3(rows, columns, extreme=extreme), "scale": scale, "activation_scale": torch.rand(())}

    def values(self, parts: Tensors) -> torch.Tensor:
        codes = parts["codes"].float()
        return codes * spread(parts["scale"].float(), *self.block, codes.shape)

    def step(self, parts: Tensors) -> torch.Tensor:
        return 16 * spread(parts["scale"].float(), *self.block, parts["codes"].shape)  # half of what lies below 448


class TestFp8SquareBlocksWithE8M0(TestFp8Blocks):
    block = (16, 16)
    settings: ClassVar[Any] = {"quant_method": "fp8", "weight_block_size": [16, 16], "scale_fmt": "ue8m0"}
    dtype = torch.float8_e8m0fnu


class TestFp8OneScale(TestFp8Blocks):
    settings: ClassVar[Any] = {"quant_method": "fp8"}
    encodes = True

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        return {"codes": e4m3(rows, columns, extreme=extreme), "scale": torch.rand(()) + 0.5}

    def values(self, parts: Tensors) -> torch.Tensor:
        return parts["codes"].float() * parts["scale"]

    def test_encodes_as_it_decodes_or_says_that_it_does_not(self) -> None:
        """What is written without a stated block has blocks of 128 x 128: see TestFp8Blocks, and test_quant_encode."""


class TestEightBitsARow(SchemeSuite):
    scheme = registry.get("8-bit")
    settings: ClassVar[Any] = compressed(num_bits=8, type="float", strategy="channel")
    shapes = ((32, 64), (37, 75))
    unread = frozenset({"input_scale", "input_zero_point"})

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        made = {"codes": e4m3(rows, columns, extreme=extreme), "scale": number(rows, 1, extreme=extreme).bfloat16()}
        return made | {"input_scale": torch.rand(1)}

    def values(self, parts: Tensors) -> torch.Tensor:
        return parts["codes"].float() * parts["scale"].float()


class TestInt8WithZeroPoints(TestEightBitsARow):
    settings: ClassVar[Any] = compressed(num_bits=8, type="int", strategy="group", group_size=16, symmetric=False)
    shapes = ((32, 64), (7, 48))

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        groups = (rows, columns // 16)
        made = {"codes": u8(rows, columns).view(torch.int8), "scale": number(*groups, extreme=extreme)}
        return made | {"zero_point": u8(*groups).view(torch.int8)}

    def values(self, parts: Tensors) -> torch.Tensor:
        dims = parts["codes"].shape
        codes = parts["codes"].float() - spread(parts["zero_point"].float(), 1, 16, dims)
        return codes * spread(parts["scale"], 1, 16, dims)


class TestEightBitsOneScale(TestEightBitsARow):
    settings: ClassVar[Any] = {"quant_method": "modelopt", "quant_algo": "FP8"}

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        made = {"codes": e4m3(rows, columns, extreme=extreme), "scale": torch.rand(()) + 0.5}
        return made | {"input_scale": torch.rand(())}


class TestMxfp4Compressed(SchemeSuite):
    scheme = registry.get("mxfp4-compressed")
    settings: ClassVar[Any] = compressed(num_bits=4, type="float", strategy="group", group_size=32)
    encodes = True

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        counts = (rows, columns // 32)
        scale = u8(*counts) if extreme else torch.randint(120, 134, counts, dtype=torch.uint8)
        return {"codes": u8(rows, columns // 2), "scale": scale}

    def values(self, parts: Tensors) -> torch.Tensor:
        rows, columns = parts["codes"].shape
        powers = 2.0 ** (parts["scale"].double() - 127)
        return FP4[nibbles(parts["codes"])].double() * spread(powers, 1, 32, (rows, 2 * columns))

    def step(self, parts: Tensors) -> torch.Tensor:
        return spread(2.0 ** (parts["scale"].double() - 127), 1, 32, (len(parts["codes"]), 1 << 20))[
            :, : 2 * parts["codes"].shape[1]
        ]


class TestMxfp4Vllm(TestMxfp4Compressed):
    scheme = registry.get("mxfp4-vllm")
    settings: ClassVar[Any] = {"quant_method": "mxfp4"}
    encodes = False


class TestMxfp4Original(TestMxfp4Compressed):
    scheme = registry.get("mxfp4-original")
    settings: ClassVar[Any] = {"quant_method": "mxfp4"}

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        made = super().parts(rows, columns, extreme)
        return {**made, "codes": made["codes"].unflatten(1, (-1, 16))}

    def values(self, parts: Tensors) -> torch.Tensor:
        return super().values({**parts, "codes": parts["codes"].flatten(1)})

    def step(self, parts: Tensors) -> torch.Tensor:
        return super().step({**parts, "codes": parts["codes"].flatten(1)})


class TestMxfp4(TestMxfp4Original):
    scheme = registry.get("mxfp4")
    shapes = ((32, 64), (96, 7))

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        return super().parts(columns, rows, extreme)

    def values(self, parts: Tensors) -> torch.Tensor:
        return super().values(parts).t()

    def step(self, parts: Tensors) -> torch.Tensor:
        return super().step(parts).t()


class TestNvfp4Compressed(SchemeSuite):
    scheme = registry.get("nvfp4-compressed")
    settings: ClassVar[Any] = compressed(num_bits=4, type="float", strategy="tensor_group", group_size=16)
    shapes = ((32, 64), (37, 48))
    unread = frozenset({"input_global_scale", "input_scale"})
    encodes = True

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        made = {"codes": u8(rows, columns // 2), "scale": e4m3(rows, columns // 16, extreme=extreme)}
        return made | {"global_scale": torch.rand(1) * 1000 + 500, "input_global_scale": torch.rand(1)}

    def factors(self, parts: Tensors) -> torch.Tensor:
        return parts["scale"].float() / parts["global_scale"].reshape(1)

    def values(self, parts: Tensors) -> torch.Tensor:
        codes = FP4[nibbles(parts["codes"])]
        return codes * spread(self.factors(parts), 1, 16, codes.shape)

    def step(self, parts: Tensors) -> torch.Tensor:
        rows, columns = parts["codes"].shape
        return spread(self.factors(parts), 1, 16, (rows, 2 * columns))


class TestNvfp4ModelOpt(TestNvfp4Compressed):
    scheme = registry.get("nvfp4-modelopt")
    settings: ClassVar[Any] = {"quant_method": "modelopt", "quant_algo": "NVFP4"}

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        made = super().parts(rows, columns, extreme)
        numbers = {"global_scale": torch.rand(()) / 1000 + 0.001, "input_scale": torch.rand(())}
        return {role: made[role] for role in ("codes", "scale")} | numbers

    def factors(self, parts: Tensors) -> torch.Tensor:
        return parts["scale"].float() * parts["global_scale"]


class TestNvfp4Transposed(TestNvfp4ModelOpt):
    scheme = registry.get("nvfp4-transposed")
    shapes = ((64, 32), (48, 37))
    encodes = False

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        made = super().parts(columns, rows, extreme)
        return {role: part.t().contiguous() if part.ndim == 2 else part for role, part in made.items()}

    def values(self, parts: Tensors) -> torch.Tensor:
        return super().values({role: part.t() if part.ndim == 2 else part for role, part in parts.items()}).t()


class TestInt4(SchemeSuite):
    scheme = registry.get("int-packed")
    num_bits: ClassVar[int] = 4
    group: ClassVar[int | None] = 16
    settings: ClassVar[Any] = compressed(num_bits=4, type="int", strategy="group", group_size=16)
    shapes = ((32, 64), (37, 48))
    unread = frozenset({"shape"})

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        groups = (rows, columns // self.group if self.group else 1)
        made = {"codes": words(columns, self.num_bits, rows), "scale": number(*groups, extreme=extreme).bfloat16()}
        return made | {"shape": torch.tensor([rows, columns])}

    def values(self, parts: Tensors) -> torch.Tensor:
        rows, columns = parts["shape"].tolist()
        codes = unpacked(parts["codes"], self.num_bits, columns).float() - 2 ** (self.num_bits - 1)
        return codes * spread(parts["scale"].float(), 1, self.group or columns, (rows, columns))


class TestInt3ARow(TestInt4):
    """Rows that do not fill their words: how long they are is what weight_shape says."""

    num_bits = 3
    group = None
    settings: ClassVar[Any] = compressed(num_bits=3, type="int", strategy="channel")
    shapes = ((32, 61), (37, 64))
    shared = frozenset({"codes"})  # an integer may lie in two words


class TestInt4WithZeroPoints(TestInt4):
    settings: ClassVar[Any] = compressed(num_bits=4, type="int", strategy="group", group_size=16, symmetric=False)
    shapes = ((32, 64), (40, 48))

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        made = super().parts(rows, columns, extreme)
        return made | {"zero_point": words(rows, 4, columns // 16).t().contiguous()}

    def values(self, parts: Tensors) -> torch.Tensor:
        rows, columns = dims = parts["shape"].tolist()
        zeros = unpacked(parts["zero_point"].t(), 4, rows).t().float()
        codes = unpacked(parts["codes"], 4, columns).float() - spread(zeros, 1, 16, dims)
        return codes * spread(parts["scale"].float(), 1, 16, dims)


class TestGptq(SchemeSuite):
    scheme = registry.get("gptq")
    settings: ClassVar[Any] = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    shapes = ((32, 64), (40, 48))
    shared = frozenset({"scale", "zeros", "g_idx"})  # which group a column is of is known once its index is read

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        groups = columns // 16
        made = {"codes": words(columns, 4, rows).t().contiguous(), "zeros": words(rows, 4, groups)}
        made["scale"] = number(groups, rows, extreme=extreme).half()
        return made | {"g_idx": torch.randint(0, groups, (columns,), dtype=torch.int32)}

    def values(self, parts: Tensors) -> torch.Tensor:
        rows, index = parts["codes"].shape[1], parts["g_idx"].long()
        codes = unpacked(parts["codes"].t(), 4, len(index)).float()
        zeros = (unpacked(parts["zeros"], 4, rows) + 1) % 16
        return (codes - zeros[index].t()) * parts["scale"].float()[index].t()


class TestAwq(TestGptq):
    scheme = registry.get("awq")
    settings: ClassVar[Any] = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
    shared = frozenset()

    def parts(self, rows: int, columns: int, extreme: bool) -> dict[str, torch.Tensor]:
        groups = columns // 16
        made = {"codes": words(rows, 4, columns), "zeros": words(rows, 4, groups)}
        return made | {"scale": number(groups, rows, extreme=extreme).half()}

    def values(self, parts: Tensors) -> torch.Tensor:
        rows = parts["scale"].shape[1]
        order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
        place = torch.arange(rows) // 8 * 8 + order[torch.arange(rows) % 8]
        codes, zeros = (unpacked(parts[role], 4, rows)[:, place].float() for role in ("codes", "zeros"))
        groups = torch.arange(len(codes)) // 16
        return ((codes - zeros[groups]) * parts["scale"].float()[groups]).t()


def test_every_scheme_has_its_suite() -> None:
    tested = {suite.scheme.name for suite in globals().values() if isinstance(suite, type) and hasattr(suite, "scheme")}
    assert tested == {scheme.name for scheme in registry.schemes()} - {"bitsandbytes"}  # which only has a name


class Swapped(Nvfp4Compressed):
    """Multiplies by the reciprocal."""

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        return decoded(parts, code, divides=False)


class HighFirst(Mxfp4Compressed):
    """Takes the high nibble of a byte first."""

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        values = tuple(FP4_VALUES[(k >> 2) | (k & 3) << 2] for k in range(16))
        return build(DecodeNibbles(values, 2, 32, code), (parts["codes"], parts["scale"]))


class NextBlock(Dequantize):
    """Scales by the block to the right."""

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        Dequantize.compute(self, target, [operands[0], operands[1].roll(-1, -1)], box)


class FromTheStart(Dequantize):
    """Counts blocks from where a slice begins."""

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        Dequantize.compute(self, target, operands, tuple(range(len(axis)) for axis in box))


class TooMuch(Dequantize):
    """Reads every scale for every slice, and takes those that it needs."""

    def operands(self, node: Node, box: Box) -> list[tuple[Node, Box]]:
        (codes, own), (scale, _) = super().operands(node, box)
        return [(codes, own), (scale, tuple(range(size) for size in scale.dims))]

    def compute(self, target: torch.Tensor, operands: list[torch.Tensor], box: Box) -> None:
        codes, scale = operands
        at = [torch.tensor([k // size for k in axis]) for axis, size in zip(box, self.block, strict=True)]
        target.copy_(codes.float() * scale.float()[at[0]][:, at[1]])


def by(op: type[Dequantize]) -> Scheme:
    class Broken(Fp8Blocks):
        def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
            return build(op((16, 32), code), (parts["codes"], parts["scale"]))

    return Broken()


class WideCells(Fp8Blocks):
    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        return 32, 32


class FlatCells(Fp8Blocks):
    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        return 8, 32


class Turning(Fp8Blocks):
    def turns(self, parts: Parts, settings: Settings) -> bool:
        return True


class OneByOne(EightBits):
    """Says that its numbers are of another shape than they are."""

    def number_dims(self, settings: Settings) -> tuple[int, ...]:
        return (1,)


FP8, NVFP4 = TestFp8Blocks, TestNvfp4Compressed
BROKEN: list[tuple[type[SchemeSuite], Scheme, str]] = [
    (NVFP4, Swapped(), "test_decodes_to_the_values"),
    (TestMxfp4Compressed, HighFirst(), "test_decodes_to_the_values"),
    (FP8, by(NextBlock), "test_decodes_to_the_values"),
    (FP8, by(FromTheStart), "test_however_it_is_cut_the_bits_are_the_same"),
    (FP8, by(TooMuch), "test_reads_its_own_codes_and_scales_only"),
    (FP8, WideCells(), "test_a_cell_shares_a_scale"),
    (FP8, FlatCells(), "test_a_cell_shares_a_scale"),
    (FP8, Turning(), "test_turned_parts_are_the_turned_weight"),
    (TestEightBitsOneScale, OneByOne(), "test_stacked_experts_are_stacked_weights"),
]


@pytest.mark.parametrize(("suite", "broken", "test"), BROKEN)
def test_broken_schemes_fail(suite: type[SchemeSuite], broken: Scheme, test: str, tmp_path: Path) -> None:
    made: Any = type("Broken", (suite,), {"scheme": broken})()
    arguments: dict[str, Any] = {"tmp_path": tmp_path} if "reads" in test else {}
    arguments |= {"code": "F32", "extreme": False} if "decodes" in test else {}
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        getattr(made, test)(**arguments)
    intact: Any = suite()
    getattr(intact, test)(**arguments)

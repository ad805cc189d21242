"""One table of element types: safetensors code <-> torch dtype <-> size. Nothing here imports torch until asked to.

Source: the dtype list of safetensors 0.8 (codes and bit widths) and torch 2.13 (names).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from .errors import UnsupportedCheckpointError

if TYPE_CHECKING:
    import torch


class DType(NamedTuple):
    """An element type as safetensors stores it."""

    code: str  # the safetensors code, "BF16"
    bits: int  # bits an element takes on disk
    torch_name: str | None  # attribute of torch; None where torch has no such type
    label: str  # what people see, "bf16"


DTYPES: dict[str, DType] = {
    dtype.code: dtype
    for dtype in (
        DType("BOOL", 8, "bool", "bool"),
        DType("U8", 8, "uint8", "u8"),
        DType("I8", 8, "int8", "i8"),
        DType("F8_E4M3", 8, "float8_e4m3fn", "f8e4m3"),
        DType("F8_E5M2", 8, "float8_e5m2", "f8e5m2"),
        DType("F8_E8M0", 8, "float8_e8m0fnu", "f8e8m0"),
        DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "f8e4m3fnuz"),
        DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "f8e5m2fnuz"),
        DType("I16", 16, "int16", "i16"),
        DType("U16", 16, "uint16", "u16"),
        DType("F16", 16, "float16", "f16"),
        DType("BF16", 16, "bfloat16", "bf16"),
        DType("I32", 32, "int32", "i32"),
        DType("U32", 32, "uint32", "u32"),
        DType("F32", 32, "float32", "f32"),
        DType("C64", 64, "complex64", "c64"),
        DType("F64", 64, "float64", "f64"),
        DType("I64", 64, "int64", "i64"),
        DType("U64", 64, "uint64", "u64"),
        DType("F4", 4, "float4_e2m1fn_x2", "f4x2"),
        DType("F6_E2M3", 6, "uint8", "f6e2m3 bytes"),
        DType("F6_E3M2", 6, "uint8", "f6e3m2 bytes"),
    )
}

# Types narrower than a byte.
PACKED = frozenset(code for code, dtype in DTYPES.items() if dtype.bits < 8)

# Types that numpy has under the same bits.
NUMPY = frozenset(("BOOL", "U8", "I8", "I16", "U16", "F16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"))


_ITEMSIZE = {code: max(1, dtype.bits // 8) for code, dtype in DTYPES.items()}


def itemsize(code: str) -> int:
    """Bytes an element of a node takes. Of types narrower than a byte, an element is a byte that holds several."""
    return _ITEMSIZE[code]


def is_packed(code: str) -> bool:
    """Whether values are narrower than a byte: they are moved, compared and shown as the bytes that hold them."""
    return DTYPES[code].bits < 8


def refuse_packed(code: str) -> None:
    """Raise UnsupportedCheckpointError for a type narrower than a byte, which nothing here computes with."""
    if is_packed(code):
        raise UnsupportedCheckpointError(
            f"cannot cast to or from {code}: its values are packed into bytes and mean little without their scales; "
            "dequantise them first with the tool that wrote them, or carry them as they are"
        )


def packed(code: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a node, whose last axis counts bytes, from that in a file, which counts values; as torch has it.

    >>> packed("F4", (2, 8)), packed("BF16", (2, 8))
    ((2, 4), (2, 8))

    Raises:
        UnsupportedCheckpointError: a row ends within a byte.
    """
    if not is_packed(code):
        return shape
    if not shape or shape[-1] * DTYPES[code].bits % 8:
        raise UnsupportedCheckpointError(
            f"{code} of shape {list(shape)}: rows end within a byte, and torch has no such tensors"
        )
    return (*shape[:-1], shape[-1] * DTYPES[code].bits // 8)


def unpacked(code: str, dims: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a file, from that of a node. Raises UnsupportedCheckpointError where bytes hold no whole values."""
    if not is_packed(code):
        return dims
    bits = DTYPES[code].bits
    if not dims or dims[-1] * 8 % bits:
        raise UnsupportedCheckpointError(
            f"{code} in {list(dims)} bytes: the last axis holds no whole values of {bits} bits"
        )
    return (*dims[:-1], dims[-1] * 8 // bits)


@cache
def to_torch(code: str) -> torch.dtype:
    """The torch dtype of a safetensors code."""
    import torch

    name = DTYPES[code].torch_name
    if is_packed(code) and not hasattr(torch, str(name)):
        return torch.uint8
    if name is None or not hasattr(torch, name):
        raise UnsupportedCheckpointError(f"torch {torch.__version__} has no dtype for safetensors {code}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@cache
def from_torch(dtype: torch.dtype) -> str:
    """The safetensors code of a torch dtype."""
    name = str(dtype).removeprefix("torch.")
    for entry in DTYPES.values():
        if entry.torch_name == name:
            return entry.code
    raise UnsupportedCheckpointError(f"safetensors has no code for {dtype}; cast the tensor first, e.g. to float32")


def parse(text: str) -> str:
    """The code a person means: "bf16", "BF16", "bfloat16" and "torch.bfloat16" are all BF16. Raises ValueError."""
    wanted = text.strip().lower().removeprefix("torch.")
    aliases = {"half": "f16", "float": "f32", "double": "f64", "float8": "f8e4m3", "fp8": "f8e4m3"}
    wanted = aliases.get(wanted, wanted)
    wanted = wanted.replace("fp", "f", 1) if wanted.startswith("fp") else wanted
    for entry in DTYPES.values():
        if wanted in (entry.code.lower(), entry.label, entry.torch_name) and entry.bits >= 8:
            return entry.code
    raise ValueError(f"unknown dtype {text!r}; use one of {', '.join(d.label for d in DTYPES.values() if d.bits >= 8)}")


@cache
def bits_dtype(code: str) -> torch.dtype:
    """The integer dtype of the same width: copies move bit patterns, so that NaN payloads survive."""
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[itemsize(code)]

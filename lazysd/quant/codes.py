"""What codes stand for: tables of float32 values, looked up rather than calculated.

A table lookup is several times faster than torch's own conversion of 8-bit floats on a CPU, and it is the definition:
the tables are made by the plainest arithmetic, once a device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from .. import dtypes

if TYPE_CHECKING:
    import torch

# Source: OCP Microscaling Formats 1.0, table of E2M1; the sign is bit 3.
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
FP4_MAX = 6.0
E4M3_MAX = 448.0  # the largest float8_e4m3fn
EXPONENT_BIAS = 127  # of E8M0 and of scales stored as bytes


@lru_cache(maxsize=64)
def byte_values(code: str, device: torch.device) -> torch.Tensor:
    """The 256 values of an 8-bit type, as float32. U8 and I8 stand for their numbers."""
    import torch

    every = torch.arange(256, dtype=torch.uint8).view(dtypes.to_torch(code)).float()
    return one_nan(every).to(device)


@lru_cache(maxsize=16)
def exponents(device: torch.device) -> torch.Tensor:
    """The 256 values of a scale stored as an exponent with bias 127, as float64: 255 stands for 2 ** 128."""
    import torch

    powers = torch.arange(256, dtype=torch.int32) - EXPONENT_BIAS
    return torch.ldexp(torch.ones(256, dtype=torch.float64), powers).to(device)


def scale_values(code: str, device: torch.device) -> torch.Tensor:
    """The 256 values of an 8-bit scale, as float32. U8 is an exponent."""
    return exponents(device).float() if code == "U8" else byte_values(code, device)


@lru_cache(maxsize=16)
def pair_values(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(256, 2): the values of a byte's two nibbles, low one first."""
    import torch

    table = torch.tensor(values, dtype=torch.float32)
    byte = torch.arange(256)
    return torch.stack([table[byte & 15], table[byte >> 4]], dim=-1).to(device)


def lookup(table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """`table[codes]` for an 8-bit tensor, in its shape."""
    import torch

    index = codes.view(torch.uint8).reshape(-1).to(torch.int32)
    return table.index_select(0, index).view(codes.shape)


def one_nan(values: torch.Tensor) -> torch.Tensor:
    """The values with every NaN spelt alike: of a product of two NaNs, kernels differ in which one they keep."""
    return values.masked_fill(values.isnan(), float("nan"))


def scales_as_float(scale: torch.Tensor) -> torch.Tensor:
    """Scales as float32: floats of any width, or exponents stored as bytes."""
    import torch

    if scale.element_size() > 1:
        return one_nan(scale.to(torch.float32))
    return lookup(scale_values(dtypes.from_torch(scale.dtype), scale.device), scale)

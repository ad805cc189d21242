"""The compiled kernel, `_decode.c`: there where a compiler was when the package was installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import dtypes
from ...compiled import built
from ...move.lanes.base import flat
from ..codes import byte_values, exponents, scale_values, scales_as_float
from .base import Kernel, Request

if TYPE_CHECKING:
    import torch

MODULE = "lazysd.quant._decode"
VERSION = 2  # of the C code's interface; a file that an older checkout has left behind is not used
_KINDS = {"BF16": 0, "F16": 1, "F32": 2}
_BYTES = 3  # of scales: they pick from a table
_INTEGERS = {"BF16": "uint16", "F16": "uint16", "F32": "uint32"}


class Compiled(Kernel):
    """Decodes by C code of our own."""

    name = "compiled"
    rank = 10

    def takes(self, target: torch.Tensor) -> bool:
        is_right = target.device.type == "cpu" and dtypes.from_torch(target.dtype) in _KINDS and is_there()
        return is_right and _is_nested(target)

    def decode(self, target: torch.Tensor, wanted: Request) -> None:
        if not target.numel():
            return
        for matrix, part in _matrices(target, wanted):
            _decode(matrix, part)


def _is_nested(target: torch.Tensor) -> bool:
    """Whether a matrix's rows lie one behind the other, or its columns do."""
    if target.dim() < 2:
        return True
    (near, size), (far, count) = sorted(zip(target.stride()[-2:], target.shape[-2:], strict=True))
    return count <= 1 or far > near * (size - 1)


def _matrices(target: torch.Tensor, wanted: Request) -> Iterator[tuple[torch.Tensor, Request]]:
    """A stack of matrices one by one; as one, where every row has scales of its own and the target allows it."""
    sizes, strides = target.shape, target.stride()
    is_even = all(strides[k] == sizes[k + 1] * strides[k + 1] for k in range(target.dim() - 2))
    if target.dim() > 2 and wanted.block[0] == 1 and is_even:
        codes, scale = (part.flatten(0, -2) for part in (wanted.codes, wanted.scale))
        zeros = None if wanted.zeros is None else wanted.zeros.flatten(0, -2)
        rows = range(codes.shape[0])
        whole = replace(wanted, codes=codes, scale=scale, zeros=zeros, rows=rows)
        yield target.as_strided((len(rows), sizes[-1]), strides[-2:]), whole
        return
    for lead in product(*map(range, sizes[:-2])):
        yield target[lead], wanted.at(*lead)


def _decode(target: torch.Tensor, wanted: Request) -> None:
    """One matrix."""
    code = dtypes.from_torch(target.dtype)
    (num_rows, num_columns), (height, width) = target.shape, wanted.block
    module().decode(
        _KINDS[code],
        _nans(code),
        flat(target).numpy(),
        int(target.storage_offset()),
        target.stride(),
        _bytes(wanted.codes),
        wanted.per_word,
        (wanted.rows.start, wanted.rows.step, num_rows, height),
        (wanted.columns.start, wanted.columns.step, num_columns, width),
        *_numbers(wanted),
    )


def _numbers(wanted: Request) -> tuple[Any, ...]:
    """(values, kind of scales, scales, table, by_total, total, zeros, zero) as the C code takes them."""
    values: Any = wanted.values
    if isinstance(values, tuple):
        values = _floats(values)
    else:
        values = None if values == "U8" else byte_values(values, wanted.codes.device).numpy()
    code, table = dtypes.from_torch(wanted.scale.dtype), None
    if wanted.scale.element_size() == 1:
        table = _doubles("exponents" if wanted.is_exponents else code)
    scale = wanted.scale if table is not None or code in _KINDS else scales_as_float(wanted.scale)
    by_total = 0 if wanted.total is None else 2 if wanted.divides else 1
    total = 1.0 if wanted.total is None else float(wanted.total)
    zeros = None if wanted.zeros is None else wanted.zeros.contiguous().numpy()
    kind = _KINDS[dtypes.from_torch(scale.dtype)] if table is None else _BYTES
    return values, kind, _bytes(scale), table, by_total, total, zeros, float(wanted.zero)


@cache
def _doubles(code: str) -> np.ndarray[Any, Any]:
    """What 256 bytes stand for, as float64."""
    import torch

    cpu = torch.device("cpu")
    made: np.ndarray[Any, Any] = (exponents(cpu) if code == "exponents" else scale_values(code, cpu).double()).numpy()
    return made


@cache
def _floats(values: tuple[float, ...]) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


@cache
def _nans(code: str) -> tuple[int, int]:
    """How torch rounds the positive and the negative NaN here, as bits: that depends on the processor."""
    import torch

    both = torch.tensor([0x7FC00000, 0x7FC00000 - (1 << 31)], dtype=torch.int32).view(torch.float32)
    positive, negative = both.to(dtypes.to_torch(code)).view(torch.uint8).numpy().view(_INTEGERS[code])
    return int(positive), int(negative)


def _bytes(tensor: torch.Tensor) -> Any:
    """A dense tensor's elements as flat bytes."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy()


def is_there() -> bool:
    """Whether the C code has been built, and nobody does without it."""
    return module() is not None


def module() -> Any:
    """The C code, or None."""
    return built(MODULE, VERSION)


KERNEL = Compiled()

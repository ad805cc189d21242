"""The compiled kernel, `_decode.c`: there where a compiler was when the package was installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import dtypes
from ...move import transpose
from ...move.kernels.base import Strided
from ...move.kernels.compiled import built
from ...move.lanes.base import flat
from ..codes import byte_values, exponents
from ..scratch import buffer
from .base import Kernel, Request

if TYPE_CHECKING:
    import torch

MODULE = "lazysd.quant._decode"
VERSION = 1  # of the C code's interface; a file that an older checkout has left behind is not used
EDGE = 512  # rows that are decoded at a time into memory whose columns are far apart
CHUNK = 1 << 17  # and their values
_KINDS = {"BF16": 0, "F16": 1, "F32": 2}
_INTEGERS = {"BF16": "uint16", "F16": "uint16", "F32": "uint32"}


class Compiled(Kernel):
    """Decodes by C code of our own."""

    name = "compiled"
    rank = 10

    def takes(self, target: torch.Tensor) -> bool:
        return target.device.type == "cpu" and dtypes.from_torch(target.dtype) in _KINDS and is_there()

    def decode(self, target: torch.Tensor, wanted: Request) -> None:
        if not target.numel():
            return
        for matrix, part in _matrices(target, wanted):
            _decode(matrix, part)


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
    """One matrix: row by row where columns are neighbours, else through small dense ones that are then transposed."""
    numbers = _numbers(wanted)
    memory, (num_rows, num_columns) = flat(target).numpy(), target.shape
    offset, strides = int(target.storage_offset()), target.stride()
    code = dtypes.from_torch(target.dtype)

    def call(into: Any, offset: int, pitch: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        module().decode(
            _KINDS[code],
            _nans(code),
            into,
            offset,
            pitch,
            _bytes(wanted.codes),
            wanted.per_word,
            (wanted.rows.start, wanted.rows.step, num_rows, wanted.block[0]),
            rows,
            (wanted.columns.start, wanted.columns.step, num_columns, wanted.block[1]),
            columns,
            *numbers,
        )

    if (strides[1] == 1 or num_columns == 1) and (strides[0] >= num_columns or num_rows == 1):
        call(memory, offset, max(strides[0], num_columns), (0, num_rows), (0, num_columns))
        return
    height = min(EDGE, num_rows)
    width = min(max(1, CHUNK // height), num_columns)
    dense = buffer("dense", height * width, target.dtype, target.device)
    held = _bytes(dense)
    for row, column in product(range(0, num_rows, height), range(0, num_columns, width)):
        rows, columns = min(row + height, num_rows), min(column + width, num_columns)
        dims = rows - row, columns - column
        call(held, 0, dims[1], (row, rows), (column, columns))
        into = Strided(memory, offset + row * strides[0] + column * strides[1], strides)
        transpose.copy(dims, target.itemsize, into, Strided(held, 0, (dims[1], 1)))


def _numbers(wanted: Request) -> tuple[Any, ...]:
    """(values, scales, table, zeros, zero) as the C code takes them."""
    values: Any = wanted.values
    values = _floats(values) if isinstance(values, tuple) else byte_values(values, wanted.codes.device).numpy()
    table, scales = None, None
    if wanted.scale.element_size() == 1 and wanted.per_word > 1:
        code = dtypes.from_torch(wanted.scale.dtype)
        made = exponents(wanted.scale.device) if wanted.is_exponents else wanted.table(code).double()
        table, scales = made.numpy(), _bytes(wanted.scale)
    else:
        scales = wanted.factors().contiguous().numpy()
    zeros = None if wanted.zeros is None else wanted.zeros.contiguous().numpy()
    return values, scales, table, zeros, float(wanted.zero)


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

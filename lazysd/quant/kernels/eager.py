"""torch: on any device, to any dtype, by looking up rather than calculating where it can."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

from ... import dtypes
from ...graph.compute import put
from .. import scratch
from ..blocks import blocks_of, spread
from ..codes import byte_values, exponents, pair_values, scale_values
from ..scratch import buffer
from .base import Kernel, Request

if TYPE_CHECKING:
    import torch

CHUNK = scratch.CHUNK  # 8-bit codes decoded at a time
NIBBLES = 1 << 18  # codes of 4 bits
_TABLE_FROM = 1 << 16  # elements of a tile from which a table of every (scale, byte) costs less than it saves
_PAIRS = {"BF16": "int32", "F16": "int32", "F32": "int64"}  # two values, as one integer that a lookup can move


class Eager(Kernel):
    """Decodes by torch."""

    name = "torch"
    rank = 50

    def takes(self, target: torch.Tensor) -> bool:
        return True

    def decode(self, target: torch.Tensor, wanted: Request) -> None:
        if not target.numel():
            return
        if wanted.per_word > 1:
            for part, request in _parts(target, wanted):
                _decode_nibbles(part, request)
            return
        factors = wanted.factors()
        for lead in product(*map(range, wanted.codes.shape[:-2])):
            for rows, block in _chunks(wanted):
                shares = [None if each is None else each[lead][block] for each in (factors, wanted.zeros)]
                _decode_bytes(target[lead][rows], wanted.codes[lead][rows], shares[0], shares[1], wanted)


def _parts(target: torch.Tensor, wanted: Request) -> Iterator[tuple[torch.Tensor, Request]]:
    """Some rows at a time, where there are many: every value takes a dozen bytes on its way."""
    most = max(1, NIBBLES // max(target.shape[-1], 1))
    if target.numel() <= NIBBLES:
        yield target, wanted
        return
    for lead in product(*map(range, target.shape[:-2])):
        matrix, request = target[lead], wanted.at(*lead)
        for start in range(0, len(matrix), most):
            rows = slice(start, start + most)
            yield matrix[rows], request.some(rows)


def _decode_nibbles(target: torch.Tensor, wanted: Request) -> None:
    import torch

    raw, group = wanted.codes.view(torch.uint8), wanted.block[1]
    table = _table(wanted, dtypes.from_torch(target.dtype), target.numel())
    if table is not None:
        found = _looked_up(table, raw, wanted, target)
    else:
        assert isinstance(wanted.values, tuple)
        pairs = pair_values(wanted.values, raw.device).view(torch.int64).view(-1)
        values = pairs.index_select(0, raw.reshape(-1).to(torch.int32)).view(torch.float32)
        found = _picked(values.view(*raw.shape[:-1], -1), wanted)
        found = found - wanted.zero if wanted.zero else found
        for numbers, change in ((wanted.zeros, torch.Tensor.sub_), (wanted.factors(), torch.Tensor.mul_)):
            if numbers is not None and _is_whole(wanted):
                change(found.view(*wanted.scale.shape, group), numbers.unsqueeze(-1))
            elif numbers is not None:
                found = change(found.clone(), spread(numbers, -1, wanted.columns, group))
        found = found.view(target.shape)
    if found is not target:
        put(target, found)


def _is_whole(wanted: Request) -> bool:
    """Whether the columns are whole blocks, one after the other."""
    axis, size = wanted.columns, wanted.block[1]
    return axis.step == 1 and axis[0] % size == 0 and len(axis) % size == 0


def _picked(values: torch.Tensor, wanted: Request) -> torch.Tensor:
    """The wanted ones of the values in all words that were read."""
    axis, per_word = wanted.columns, wanted.per_word
    first = axis[0] % per_word
    if axis.step > per_word and axis.step % per_word == 0:  # one value of each word
        return values[..., first::per_word]
    return values[..., first : first + axis[-1] - axis[0] + 1 : axis.step]


def _table(wanted: Request, code: str, count: int) -> torch.Tensor | None:
    """The decoded pair of every (scale, byte), where scales have 256 values and the table is worth making."""
    if wanted.scale.element_size() > 1 or code not in _PAIRS or wanted.per_word != 2:
        return None
    if wanted.zeros is not None or wanted.zero:
        return None
    assert isinstance(wanted.values, tuple)
    scale_code = dtypes.from_torch(wanted.scale.dtype)
    if wanted.total is None:
        return _every_pair(wanted.values, scale_code, code, wanted.scale.device)
    return _pair_table(wanted.values, wanted.table(scale_code), code) if count >= _TABLE_FROM else None


def _looked_up(table: torch.Tensor, raw: torch.Tensor, wanted: Request, target: torch.Tensor) -> torch.Tensor:
    """Two decoded values a lookup, no arithmetic left. Into the target itself where it is dense."""
    import torch

    scale, axis, half = wanted.scale, wanted.columns, wanted.block[1] // 2
    high = scale.view(torch.uint8).to(torch.int32) << 8
    if _is_whole(wanted):
        index = high.unsqueeze(-1).bitwise_or(raw.view(*scale.shape, half)).view(-1)
        if target.is_contiguous() and not target.storage_offset() % 2:
            flat = target.as_strided((target.numel(),), (1,))  # an axis of one element may have any stride
            torch.index_select(table, 0, index, out=flat.view(table.dtype))
            return target
    else:
        index = spread(high, -1, blocks_of(axis, wanted.per_word), half).bitwise_or(raw).view(-1)
    values = table.index_select(0, index).view(target.dtype).view(*raw.shape[:-1], -1)
    return _picked(values, wanted)


def _pair_table(values: tuple[float, ...], factors: torch.Tensor, code: str) -> torch.Tensor:
    """For every (scale, byte), the two decoded values as one integer."""
    import torch

    pairs = factors.view(256, 1, 1) * pair_values(values, factors.device)
    return pairs.float().to(dtypes.to_torch(code)).view(-1).view(getattr(torch, _PAIRS[code]))


@lru_cache(maxsize=8)
def _every_pair(values: tuple[float, ...], scale_code: str, code: str, device: torch.device) -> torch.Tensor:
    # in float64, where 2 ** 128 is a number: as with ldexp, zero times it is zero
    factors = exponents(device) if scale_code == "U8" else scale_values(scale_code, device)
    return _pair_table(values, factors, code)


def _chunks(wanted: Request) -> Iterator[tuple[slice, slice]]:
    """(rows of a tile, their blocks), cut so that the values fit a cache and blocks are one, or one a row."""
    rows, size = wanted.rows, wanted.block[0]
    blocks, most = blocks_of(rows, size), max(1, CHUNK // max(len(wanted.columns), 1))
    start = 0
    while start < len(rows):
        if size == 1:
            stop = min(start + most, len(rows))
            yield slice(start, stop), slice(start, stop)  # blocks_of() steps with the rows
        else:
            block = rows[start] // size
            stop = min(start + most, len(rows), start + -(-((block + 1) * size - rows[start]) // rows.step))
            at = (block - blocks.start) // blocks.step
            yield slice(start, stop), slice(at, at + 1)
        start = stop


def _decode_bytes(
    target: torch.Tensor, codes: torch.Tensor, factors: Any, offsets: torch.Tensor | None, wanted: Request
) -> None:
    """Some rows, whose scales (rows, blocks) are one row each, or one for all."""
    import torch

    assert isinstance(wanted.values, str)
    numel, device, axis, size = codes.numel(), codes.device, wanted.columns, wanted.block[1]
    index = buffer("index", numel, torch.int32, device)
    index.view(codes.shape).copy_(codes.view(torch.uint8))
    values = buffer("values", numel, torch.float32, device)
    torch.index_select(byte_values(wanted.values, device), 0, index, out=values)
    values = values.view(codes.shape)
    if offsets is not None:
        for part, numbers in _by_blocks(values, offsets, axis, size):
            part.sub_(numbers)
    elif wanted.zero:
        values.sub_(wanted.zero)
    for part, numbers in _by_blocks(values, factors, axis, size):
        part.mul_(numbers)
    scratch.put(target, values)


def _by_blocks(
    values: torch.Tensor, numbers: torch.Tensor, axis: range, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Parts of values (rows, columns), and the numbers (rows or 1, blocks) of their blocks to broadcast to them."""
    count = len(axis)
    if axis.step != 1 or numbers.shape[1] == 1:
        yield values, spread(numbers, -1, axis, size)
        return
    head = min(-axis[0] % size, count)  # what is left of a block that began before the slice
    first = 1 if head else 0
    whole = (count - head) // size
    if head:
        yield values[:, :head], numbers[:, :1]
    if whole:
        end = head + whole * size
        yield values[:, head:end].unflatten(1, (whole, size)), numbers[:, first : first + whole].unsqueeze(-1)
    if head + whole * size < count:
        yield values[:, head + whole * size :], numbers[:, first + whole : first + whole + 1]


KERNEL = Eager()

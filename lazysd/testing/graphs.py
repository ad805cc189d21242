"""Strategies of random graphs with their oracle: every op is applied to a lazy tensor and, by plain torch, to bits.

The oracle holds bit patterns (integers of the dtype's width), because moving elements must not depend on what they
mean: NaN payloads count. Only a cast looks at values.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from .. import dtypes
from ..graph.leaves import FileRange, InMemory
from ..graph.rewrite import concat, stack
from ..stores.base import Parts
from ..stores.memory import MemoryFile
from ..tensor.lazy import LazyTensor
from .values import random_bits

CODES = ("BF16", "F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0")
CASTABLE = ("BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2")
SIZES = (0, 1, 1, 2, 2, 3, 4, 4, 5, 6)


class Drawn(NamedTuple):
    """A lazy tensor, and the bits that plain torch says it has."""

    node: LazyTensor
    bits: torch.Tensor  # integers as wide as the node's elements

    @property
    def expected(self) -> torch.Tensor:
        """The bits as a tensor of the node's dtype."""
        return self.bits.contiguous().view(dtypes.to_torch(self.node.code))


class NotedFile(MemoryFile):
    """A file in memory that remembers every read."""

    def __init__(self, data: bytes, name: str = "model.safetensors") -> None:
        super().__init__(data, name)
        self.calls: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def read(self, parts: Parts) -> None:
        for buffer, offset in parts:
            assert 0 <= offset <= offset + len(buffer) <= len(self.data), "a read outside the file"
        super().read(parts)
        with self._lock:
            self.calls.extend((offset, len(buffer)) for buffer, offset in parts)


def leaf(bits: torch.Tensor, code: str, kind: str = "file", lead: int = 0) -> LazyTensor:
    """A leaf over these bits: a stretch of a file, or a tensor in memory with strides of its own."""
    if kind == "file":
        data = bytes(lead) + bits.numpy().tobytes() + b"\xee"
        return LazyTensor(FileRange(NotedFile(data), lead), (), tuple(bits.shape), code)
    held = bits.view(dtypes.to_torch(code))
    if kind == "strided" and bits.dim():
        order = list(reversed(range(bits.dim())))
        held = bits.permute(order).contiguous().permute(order).view(dtypes.to_torch(code))
    return LazyTensor(InMemory(held), (), tuple(bits.shape), code)


@st.composite
def leaves(draw: Any, code: str, dims: tuple[int, ...] | None = None) -> Drawn:
    """One tensor of a file or of memory, random in shape (unless given), bits, strides and place."""
    if dims is None:
        dims = tuple(draw(st.lists(st.sampled_from(SIZES), max_size=4)))
    bits = random_bits(code, dims, draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(("file", "file", "memory", "strided")))
    return Drawn(leaf(bits, code, kind, draw(st.sampled_from((0, 3, 8)))), bits)


@st.composite
def slices(draw: Any, shape: Sequence[int]) -> Any:
    """Keys for a tensor of this shape, as users write them: ints, slices with steps, None, `...`, one list or mask.

    `lazy[key]` and `tensor[key]` mean the same for each of them.
    """
    dims = tuple(shape)
    keys: list[Any] = []
    listed = False
    for size in dims[: draw(st.integers(0, len(dims)))]:
        kind = draw(st.sampled_from(("int", "slice", "slice", "all", "list", "mask")))
        if kind == "int" and size:
            keys.append(draw(st.integers(-size, size - 1)))
        elif kind == "slice":
            bound = st.none() | st.integers(-size - 2, size + 2)
            keys.append(slice(draw(bound), draw(bound), draw(st.none() | st.integers(1, 4))))
        elif kind == "list" and size and not listed:
            listed = True
            keys.append(draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=5)))
        elif kind == "mask" and not listed:
            listed = True
            rows = random_bits("BOOL", (size,), draw(st.integers(0, 2**31))) if size > 100 else None
            bools = st.lists(st.booleans(), min_size=size, max_size=size)
            keys.append(torch.tensor(draw(bools), dtype=torch.bool) if rows is None else rows.bool())
        else:
            keys.append(slice(None))
    if draw(st.booleans()):
        keys.insert(draw(st.integers(0, len(keys))), None)
    if draw(st.booleans()) and len(keys) == len([k for k in keys if k is not None]):
        keys.append(Ellipsis)
    return tuple(keys)


@st.composite
def _shapes_of(draw: Any, numel: int) -> tuple[int, ...]:
    """A shape with that many elements."""
    if not numel:
        dims = draw(st.lists(st.sampled_from((1, 2, 3)), max_size=2))
        dims.insert(draw(st.integers(0, len(dims))), 0)
        return tuple(dims)
    factors, rest = [], numel
    for prime in (2, 3, 5):
        while rest % prime == 0:
            factors.append(prime)
            rest //= prime
    factors = draw(st.permutations([*factors, rest] if rest > 1 else factors))
    dims, size = [], 1
    for factor in factors:
        size *= factor
        if draw(st.booleans()):
            dims.append(size)
            size = 1
    dims.append(size)
    if draw(st.booleans()):
        dims.insert(draw(st.integers(0, len(dims))), 1)
    return tuple(dims)


class _Step(NamedTuple):
    """What an op is drawn from."""

    draw: Any
    drawn: Drawn
    code: str
    dim: int  # of an axis, negative ones too; 0 where there is none

    @property
    def node(self) -> LazyTensor:
        return self.drawn.node

    @property
    def bits(self) -> torch.Tensor:
        return self.drawn.bits

    @property
    def size(self) -> int:
        return self.bits.shape[self.dim]

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def more(self, dims: Sequence[tuple[int, ...]]) -> list[Drawn]:
        """The tensor among new leaves of these shapes, in any order."""
        parts: list[Drawn] = self.draw(st.permutations([self.drawn, *(self.draw(leaves(self.code, d)) for d in dims)]))
        return parts


def _permute(s: _Step) -> Drawn:
    order = s.draw(st.permutations(range(s.bits.dim())))
    return Drawn(s.node.permute(*order) if order else s.node.permute(()), s.bits.permute(order))


def _index(s: _Step) -> Drawn:
    key = s.draw(slices(s.bits.shape))
    return Drawn(s.node[key], s.bits[key])


def _reshape(s: _Step) -> Drawn:
    shape = s.draw(_shapes_of(s.bits.numel()))
    return Drawn(s.node.reshape(shape), s.bits.reshape(shape))


def _stack(s: _Step) -> Drawn:
    parts = s.more([tuple(s.bits.shape)] * s.integer(0, 2))
    dim = s.integer(-s.bits.dim() - 1, s.bits.dim())
    return Drawn(stack(tuple(p.node for p in parts), dim), torch.stack([p.bits for p in parts], dim))


def _concat(s: _Step) -> Drawn:
    dims = []
    for _ in range(s.integer(0, 2)):
        shape = list(s.bits.shape)
        shape[s.dim] = s.draw(st.sampled_from((0, 1, 2, 3)))
        dims.append(tuple(shape))
    parts = s.more(dims)
    return Drawn(concat(tuple(p.node for p in parts), s.dim), torch.cat([p.bits for p in parts], s.dim))


def _unsqueeze(s: _Step) -> Drawn:
    dim = s.integer(-s.bits.dim() - 1, s.bits.dim())
    return Drawn(s.node.unsqueeze(dim), s.bits.unsqueeze(dim))


def _transpose(s: _Step) -> Drawn:
    other = s.integer(-s.bits.dim(), s.bits.dim() - 1)
    return Drawn(s.node.transpose(s.dim, other), s.bits.transpose(s.dim, other))


def _flatten(s: _Step) -> Drawn:
    end = s.integer(s.dim % s.bits.dim(), s.bits.dim() - 1)
    return Drawn(s.node.flatten(s.dim, end), s.bits.flatten(s.dim, end))


def _unflatten(s: _Step) -> Drawn:
    shape = s.draw(_shapes_of(s.size))
    return Drawn(s.node.unflatten(s.dim, shape), s.bits.unflatten(s.dim, shape))


def _squeeze(s: _Step) -> Drawn:
    return Drawn(s.node.squeeze(s.dim), s.bits.squeeze(s.dim))


def _narrow(s: _Step) -> Drawn:
    start = s.integer(0, s.size)
    length = s.integer(0, s.size - start)
    return Drawn(s.node.narrow(s.dim, start, length), s.bits.narrow(s.dim, start, length))


def _select(s: _Step) -> Drawn:
    at = s.integer(-s.size, s.size - 1)
    return Drawn(s.node.select(s.dim, at), s.bits.select(s.dim, at))


def _cut(name: str) -> Callable[[_Step], Drawn]:
    def one_part(s: _Step) -> Drawn:
        length = s.integer(1, s.size)
        mine, theirs = getattr(s.node, name)(length, s.dim), getattr(s.bits, name)(length, s.dim)
        assert [tuple(part.shape) for part in mine] == [tuple(part.shape) for part in theirs]
        at = s.integer(0, len(mine) - 1)
        return Drawn(mine[at], theirs[at])

    return one_part


def _unbind(s: _Step) -> Drawn:
    at = s.integer(0, s.size - 1)
    return Drawn(s.node.unbind(s.dim)[at], s.bits.unbind(s.dim)[at])


def _inverse(s: _Step) -> Drawn:
    """Taken apart and put together again: what rewrites undo."""
    return Drawn(stack(s.node.unbind(s.dim), s.dim), torch.stack(s.bits.unbind(s.dim), s.dim))


MAX_UNBOUND = 64  # of an axis that is taken apart; each part is a node
_ANY: dict[str, Callable[[_Step], Drawn]] = {
    "permute": _permute, "index": _index, "reshape": _reshape, "stack": _stack, "unsqueeze": _unsqueeze,
}  # fmt: skip
_OF_AN_AXIS: dict[str, Callable[[_Step], Drawn]] = {
    "transpose": _transpose, "concat": _concat, "flatten": _flatten, "squeeze": _squeeze, "narrow": _narrow,
}  # fmt: skip
_OF_ELEMENTS: dict[str, Callable[[_Step], Drawn]] = {
    "unflatten": _unflatten, "select": _select, "split": _cut("split"), "chunk": _cut("chunk"), "unbind": _unbind,
    "inverse": _inverse,
}  # fmt: skip
OPS = (*_ANY, *_OF_AN_AXIS, *_OF_ELEMENTS)


@st.composite
def step(draw: Any, drawn: Drawn, code: str, name: str) -> Drawn:
    """One more op on both sides; the same pair where the op does not apply."""
    ndim = drawn.bits.dim()
    if name in _ANY:
        return _ANY[name](_Step(draw, drawn, code, 0))
    if not ndim:
        return drawn
    s = _Step(draw, drawn, code, draw(st.integers(-ndim, ndim - 1)))
    if name in _OF_AN_AXIS:
        return _OF_AN_AXIS[name](s)
    if not s.size or (name in ("unbind", "inverse") and s.size > MAX_UNBOUND):
        return drawn
    return _OF_ELEMENTS[name](s)


@st.composite
def lazy_tensors(draw: Any, codes: Sequence[str] = CODES, max_ops: int = 7) -> Drawn:
    """Lazy tensors made of random structural ops over files and tensors in memory, each with what torch makes of it.

    Args:
        codes: safetensors dtype codes to choose from, e.g. ("BF16", "F32").
        max_ops: ops at most; shapes stay below 5000 elements.

    Returns:
        A strategy of Drawn: `node`, the lazy tensor; `bits`, its elements as integers; `expected`, as its dtype.
    """
    code = draw(st.sampled_from(codes))
    drawn: Drawn = draw(leaves(code))
    for name in draw(st.lists(st.sampled_from(OPS), max_size=max_ops)):
        if drawn.bits.dim() < 6 and drawn.bits.numel() < 5000:
            drawn = draw(step(drawn, code, name))
    return drawn

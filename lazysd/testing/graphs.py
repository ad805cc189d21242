"""Strategies of random graphs with their oracle: every op is applied to a lazy tensor and, by plain torch, to bits.

The oracle holds bit patterns (integers of the dtype's width), because moving elements must not depend on what they
mean: NaN payloads count. Only a cast looks at values.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
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
        return LazyTensor(FileRange(MemoryFile(data), lead), (), tuple(bits.shape), code)
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
            keys.append(torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool))
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


OPS = ("permute", "transpose", "index", "reshape", "stack", "concat", "split", "unflatten", "flatten", "squeeze",
       "unsqueeze", "narrow", "chunk", "unbind", "select", "inverse")  # fmt: skip


@st.composite
def _step(draw: Any, drawn: Drawn, code: str, name: str) -> Drawn:
    """One more op on both sides; the same pair where the op does not apply."""
    node, bits = drawn
    ndim = bits.dim()
    if name == "permute":
        order = draw(st.permutations(range(ndim)))
        return Drawn(node.permute(*order) if order else node.permute(()), bits.permute(order))
    if name == "index":
        key = draw(slices(bits.shape))
        return Drawn(node[key], bits[key])
    if name == "reshape":
        shape = draw(_shapes_of(bits.numel()))
        return Drawn(node.reshape(shape), bits.reshape(shape))
    if name == "stack":
        more = [draw(leaves(code, tuple(bits.shape))) for _ in range(draw(st.integers(0, 2)))]
        parts, dim = draw(st.permutations([drawn, *more])), draw(st.integers(-ndim - 1, ndim))
        return Drawn(stack(tuple(p.node for p in parts), dim), torch.stack([p.bits for p in parts], dim))
    if name == "unsqueeze":
        dim = draw(st.integers(-ndim - 1, ndim))
        return Drawn(node.unsqueeze(dim), bits.unsqueeze(dim))
    if not ndim:
        return drawn
    dim = draw(st.integers(-ndim, ndim - 1))
    size = bits.shape[dim]
    if name == "transpose":
        other = draw(st.integers(-ndim, ndim - 1))
        return Drawn(node.transpose(dim, other), bits.transpose(dim, other))
    if name == "concat":
        parts = [drawn]
        for _ in range(draw(st.integers(0, 2))):
            dims = list(bits.shape)
            dims[dim] = draw(st.sampled_from((0, 1, 2, 3)))
            parts.append(draw(leaves(code, tuple(dims))))
        parts = draw(st.permutations(parts))
        return Drawn(concat(tuple(p.node for p in parts), dim), torch.cat([p.bits for p in parts], dim))
    if name == "flatten":
        end = draw(st.integers(dim % ndim, ndim - 1))
        return Drawn(node.flatten(dim, end), bits.flatten(dim, end))
    if name == "unflatten" and size:
        shape = draw(_shapes_of(size))
        return Drawn(node.unflatten(dim, shape), bits.unflatten(dim, shape))
    if name == "squeeze":
        return Drawn(node.squeeze(dim), bits.squeeze(dim))
    if name == "narrow":
        start = draw(st.integers(0, size))
        length = draw(st.integers(0, size - start))
        return Drawn(node.narrow(dim, start, length), bits.narrow(dim, start, length))
    if not size:
        return drawn
    if name == "select":
        at = draw(st.integers(-size, size - 1))
        return Drawn(node.select(dim, at), bits.select(dim, at))
    if name in ("split", "chunk"):
        length = draw(st.integers(1, size))
        mine, theirs = getattr(node, name)(length, dim), getattr(bits, name)(length, dim)
        assert [tuple(part.shape) for part in mine] == [tuple(part.shape) for part in theirs]
        at = draw(st.integers(0, len(mine) - 1))
        return Drawn(mine[at], theirs[at])
    if name == "unbind":
        at = draw(st.integers(0, size - 1))
        return Drawn(node.unbind(dim)[at], bits.unbind(dim)[at])
    if name == "inverse":  # take it apart and put it together: what rewrites undo
        parts, other = node.unbind(dim), bits.unbind(dim)
        return Drawn(stack(parts, dim), torch.stack(other, dim))
    return drawn


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
            drawn = draw(_step(drawn, code, name))
    return drawn

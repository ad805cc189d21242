"""Leaves: where a graph's data comes from. Bytes of a file, a torch tensor, a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .base import Leaf

if TYPE_CHECKING:
    from .node import Node


class ByteSource(Protocol):
    """A file that leaves read from (stores.local.SourceFile)."""

    @property
    def path(self) -> str: ...
    def pread(self, buffer: memoryview, offset: int) -> None: ...
    def view(self, offset: int, nbytes: int) -> memoryview | None: ...


@dataclass(frozen=True, slots=True, eq=False)
class FileRange(Leaf):
    """A contiguous, row-major tensor at a byte offset of a file."""

    file: ByteSource
    offset: int

    def describe(self, node: Node) -> str:
        return f"{self.file.path.rsplit('/', 1)[-1]} @ {self.offset}"


@dataclass(frozen=True, slots=True, eq=False)
class InMemory(Leaf):
    """A torch tensor that is already in memory, strides and all."""

    tensor: Any

    def describe(self, node: Node) -> str:
        return f"in memory on {self.tensor.device}"


@dataclass(frozen=True, slots=True)
class Full(Leaf):
    """One value everywhere."""

    value: float

    def describe(self, node: Node) -> str:
        return f"filled with {self.value:g}"

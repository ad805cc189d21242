"""Leaves: where a graph's data comes from. Bytes of a file, a torch tensor, a constant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import SourceChangedError
from ..stores.base import File
from .base import Leaf

if TYPE_CHECKING:
    from .node import Node


@dataclass(slots=True, eq=False)  # not frozen, which would take twice as long to make: there is one for each key
class FileRange(Leaf):
    """A contiguous, row-major tensor at a byte offset of a file. Nobody writes to it."""

    file: File
    offset: int

    def describe(self, node: Node) -> str:
        return f"{self.file.path.rsplit('/', 1)[-1]} @ {self.offset}"


@dataclass(frozen=True, slots=True, eq=False)
class InMemory(Leaf):
    """A torch tensor that is already in memory, strides and all, with the values it had when the leaf was made.

    torch counts in-place edits, and tells all tensors of one memory; what happened to the memory since is an error at
    the next read. It counts none through `.data`, numpy or another library, none of a fused optimizer, and none of
    tensors made under inference_mode.
    """

    tensor: Any  # the very object that was wrapped
    _held: Any = field(init=False, repr=False)  # its memory, shape and dtype, also once it has been given others
    _num_edits: int | None = field(init=False, repr=False)
    _extent_nbytes: int = field(init=False, repr=False)  # from the start of its memory to the end of its last element

    def __post_init__(self) -> None:
        held = self.tensor.detach()
        last = sum((size - 1) * stride for size, stride in zip(held.shape, held.stride(), strict=True))
        extent = (held.storage_offset() + last + 1) * held.element_size() if held.numel() else 0
        object.__setattr__(self, "_held", held)
        object.__setattr__(self, "_num_edits", None if held.is_inference() else held._version)
        object.__setattr__(self, "_extent_nbytes", extent)

    def values(self) -> Any:
        """The tensor as it was wrapped: shares its memory. Raises SourceChangedError where that has been written to."""
        if self._num_edits is not None and self._held._version != self._num_edits:
            change = "edited in place"
        elif self._held.untyped_storage().nbytes() < self._extent_nbytes:
            change = "deprived of its memory"
        else:
            return self._held
        raise SourceChangedError(
            f"cannot read a {self._held.dtype} tensor of shape {list(self._held.shape)} in memory: it was {change} "
            "after from_torch() had wrapped it; wrap it again for the new values, or a clone() to keep the old"
        )

    def __reduce__(self) -> Any:
        return InMemory, (self.values(),)

    def describe(self, node: Node) -> str:
        return f"in memory on {self.tensor.device}"


@dataclass(frozen=True, slots=True)
class Full(Leaf):
    """One value everywhere."""

    value: float

    def describe(self, node: Node) -> str:
        return f"filled with {self.value:g}"

"""LazyTensor: a node as users hold it. Reading, slicing, torch's methods and functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import dtypes
from ..graph.node import Node
from .operators import Operators

if TYPE_CHECKING:
    import numpy as np
    import torch


class LazyTensor(Operators, Node):
    """A tensor that has not been read: shape and dtype are known, bytes move on `materialize()`.

    It is a duck type, not a `torch.Tensor` subclass. Structural operations (indexing, permute, transpose, reshape,
    split, to) return lazy tensors and read nothing; any other torch function reads what it needs.
    """

    __slots__ = ()

    @property
    def shape(self) -> torch.Size:
        """The shape, as torch.Size."""
        import torch

        return torch.Size(self.dims)

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype."""
        return dtypes.to_torch(self.code)

    def materialize(
        self, device: Any = "cpu", dtype: torch.dtype | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Read the tensor.

        Reads exactly `reads()`. A plain tensor of a file opened with io="mmap" comes back on the CPU as a zero-copy
        private view (writing to it never reaches the file); everything else is copied once, from file to destination,
        in blocks of about a megabyte.

        Args:
            device: "cpu", "cuda", "cuda:1", "meta" or a torch.device. Ignored when `out` is given.
            dtype: cast to this dtype on the way.
            out: a tensor or strided view of the same shape to fill in place; its device and dtype decide.

        Returns:
            A torch.Tensor of `self.shape` (`out` itself, if given).

        Raises:
            ReadError, SourceChangedError, ClosedCheckpointError: the source is not what was opened.
            ValueError: `out` has another shape.
        """
        from ..move.materialize import materialize

        return materialize(self, device, dtype, out)

    def reads(self) -> list[tuple[str, int, int]]:
        """What `materialize()` would read: (file, offset, nbytes), merged and sorted. Reads nothing itself."""
        from ..move.materialize import reads

        return reads(self)

    def __getitem__(self, key: Any) -> LazyTensor:
        from .indexing import index

        return index(self, key)

    def __getattr__(self, name: str) -> Any:  # permute, transpose, reshape, split, to, … : one table, in tensor.methods
        if name.startswith("__"):
            raise AttributeError(name)
        from .torch_functions import method

        return method(self, name)

    def __len__(self) -> int:
        if not self.dims:
            raise TypeError("len() of a 0-d tensor")
        return self.dims[0]

    def __iter__(self) -> Iterator[LazyTensor]:
        return (self[index] for index in range(len(self)))

    def _operate(self, name: str, others: Any) -> Any:  # what tensor.operators calls
        from .torch_functions import operate

        return operate(self, name, others)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        import numpy as np

        wanted = self.code
        if wanted not in dtypes.NUMPY:
            label = dtypes.DTYPES[wanted].label
            if dtype is None:
                raise TypeError(f"numpy has no {label}; cast first: numpy.asarray(lazy.to(torch.float32))")
            wanted = "F32"  # holds every value of the types that numpy lacks
        array = self.materialize(dtype=dtypes.to_torch(wanted)).numpy()
        if copy is False and dtype is not None and np.dtype(dtype) != array.dtype:
            raise ValueError(f"cannot give {array.dtype} as {np.dtype(dtype)} without a copy")
        return np.array(array, dtype=dtype) if copy else np.asarray(array, dtype=dtype)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.materialize().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .torch_functions import torch_function

        return torch_function(func, types, args, kwargs or {})

    def __format__(self, spec: str) -> str:
        return format(self.materialize().item(), spec) if spec and not self.dims else format(repr(self), spec)

    def _repr_html_(self) -> str:
        from ..display.html import to_html

        return to_html(self)

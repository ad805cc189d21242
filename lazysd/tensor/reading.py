"""Reading a lazy tensor: into torch, numpy, DLPack, Python numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import dtypes
from ..graph.node import Node

if TYPE_CHECKING:
    import numpy as np
    import torch


class Reading(Node):
    """What a tensor is, without reading; and the ways to read it."""

    __slots__ = ()

    @property
    def shape(self) -> torch.Size:
        """The shape, as torch.Size."""
        import torch

        return torch.Size(self.dims)

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype. UnsupportedCheckpointError where this torch has none for it."""
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
            ValueError: `out` has another shape. TypeError: `dtype` or `out` is no torch.dtype or tensor.
        """
        from ..move.materialize import materialize

        return materialize(self, device, dtype, out)

    def reads(self) -> list[tuple[str, int, int]]:
        """What `materialize()` would read: (file, offset, nbytes), merged and sorted. Reads nothing itself."""
        from ..move.materialize import reads

        return reads(self)

    def numpy(self, *, force: bool = False) -> np.ndarray[Any, Any]:
        """Read the tensor as a numpy array; plain tensors of a mapped file as a private view.

        Args:
            force: as in torch, where it also allows what has to be copied; here everything allowed is the same.

        Returns:
            An array of the same shape and dtype.

        Raises:
            TypeError: numpy has no such dtype (bfloat16, FP8); cast first. As `materialize` otherwise.
        """
        return self.__array__()

    def item(self) -> Any:
        """Read the only element, as a Python number. RuntimeError, and nothing read, where there is not just one."""
        if self.numel() != 1:
            raise RuntimeError(f"item() needs a tensor of one element, this one has {self.numel()}")
        return self.materialize().item()

    def tolist(self) -> Any:
        """Read all elements, as nested lists of Python numbers; of a 0-d tensor the number itself."""
        return self.materialize().tolist()

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

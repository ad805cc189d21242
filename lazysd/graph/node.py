"""LazyTensor: an immutable node that knows its shape, its dtype, and the op and inputs that produce it."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from .. import dtypes
from .boxes import Dims
from .dunders import Operators

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .base import Op


class Engine(Protocol):
    """What the rooms above the graph do for a node. Installed once by the package, so that imports point downward."""

    def materialize(self, node: LazyTensor, device: Any, dtype: Any, out: Any) -> torch.Tensor: ...
    def reads(self, node: LazyTensor) -> list[tuple[str, int, int]]: ...
    def index(self, node: LazyTensor, key: Any) -> LazyTensor: ...
    def method(self, node: LazyTensor, name: str) -> Any: ...
    def torch_function(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any: ...
    def operate(self, node: LazyTensor, name: str, others: Any) -> Any: ...
    def html(self, shown: Any) -> str: ...


engine: Engine = None  # type: ignore[assignment]  # set by lazysd/__init__.py


class LazyTensor(Operators):
    """A tensor that has not been read: shape and dtype are known, bytes move on `materialize()`.

    It is a duck type, not a `torch.Tensor` subclass. Structural operations (indexing, permute, transpose, reshape,
    split, to) return lazy tensors and read nothing; any other torch function reads what it needs.
    """

    __slots__ = ("__weakref__", "code", "dims", "inputs", "op")

    op: Op
    inputs: tuple[LazyTensor, ...]
    dims: Dims  # the shape, as plain ints
    code: str  # the safetensors dtype code

    def __init__(self, op: Op, inputs: tuple[LazyTensor, ...], dims: Dims, code: str):
        self.op, self.inputs, self.dims, self.code = op, inputs, dims, code

    @property
    def shape(self) -> torch.Size:
        """The shape, as torch.Size."""
        import torch

        return torch.Size(self.dims)

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype."""
        return dtypes.to_torch(self.code)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes once materialised."""
        return prod(self.dims) * dtypes.DTYPES[self.code].bits // 8

    @property
    def itemsize(self) -> int:
        """Bytes an element takes."""
        return dtypes.itemsize(self.code)

    def numel(self) -> int:
        """Number of elements."""
        return prod(self.dims)

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
        return engine.materialize(self, device, dtype, out)

    def reads(self) -> list[tuple[str, int, int]]:
        """What `materialize()` would read: (file, offset, nbytes), merged and sorted. Reads nothing itself."""
        return engine.reads(self)

    def __getitem__(self, key: Any) -> LazyTensor:
        return engine.index(self, key)

    def __getattr__(self, name: str) -> Any:  # permute, transpose, reshape, split, to, … : one table, in the engine
        if name.startswith("__"):
            raise AttributeError(name)
        return engine.method(self, name)

    def __len__(self) -> int:
        if not self.dims:
            raise TypeError("len() of a 0-d tensor")
        return self.dims[0]

    def __iter__(self) -> Iterator[LazyTensor]:
        return (self[index] for index in range(len(self)))

    def _operate(self, name: str, others: Any) -> Any:  # what graph.dunders calls
        return engine.operate(self, name, others)

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
        return engine.torch_function(func, types, args, kwargs or {})

    def __copy__(self) -> LazyTensor:
        return self

    def __deepcopy__(self, memo: Any) -> LazyTensor:
        return self  # immutable, so a copy would be the same node

    def __reduce__(self) -> Any:
        return LazyTensor, (self.op, self.inputs, self.dims, self.code)

    def __format__(self, spec: str) -> str:
        return format(self.materialize().item(), spec) if spec and not self.dims else format(repr(self), spec)

    def _repr_html_(self) -> str:
        return engine.html(self)

    def __repr__(self) -> str:
        label = dtypes.DTYPES[self.code].label
        shown = self
        while shown.op.is_view:  # what is permuted or folded says more than how
            shown = shown.inputs[0]
        shape = ", ".join(map(str, self.dims))
        return f"LazyTensor({label}[{shape}], {format_nbytes(self.nbytes)}, {shown.op.describe(shown)})"


def format_nbytes(nbytes: float) -> str:
    """A size for people, in powers of 1000: 805306368 -> '805.3 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"

"""Methods of dtype and place, and what torch code asks of a tensor before it uses it. torch's signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

from .. import dtypes
from ..arguments import kind_of, shown
from ..graph.rewrite import cast
from ..move.places import device_of
from .arguments import as_axis
from .reading import Reading

if TYPE_CHECKING:
    import torch

_FORMS = {  # the arguments of to(), by what the first one is
    "dtype": ("dtype", "non_blocking", "copy"),
    "other": ("other", "non_blocking", "copy"),
    "device": ("device", "dtype", "non_blocking", "copy"),
}


class Casting(Reading):
    """dtype and device. Casts stay lazy; what asks for a device other than the CPU reads."""

    __slots__ = ()

    # What holds of every lazy tensor, as of a tensor on the CPU that no gradient flows through.
    requires_grad: ClassVar[bool] = False
    grad: ClassVar[None] = None
    grad_fn: ClassVar[None] = None
    is_leaf: ClassVar[bool] = True
    is_cpu: ClassVar[bool] = True
    is_cuda: ClassVar[bool] = False
    is_meta: ClassVar[bool] = False
    is_mps: ClassVar[bool] = False
    is_nested: ClassVar[bool] = False
    is_quantized: ClassVar[bool] = False
    is_sparse: ClassVar[bool] = False
    is_xpu: ClassVar[bool] = False

    @property
    def device(self) -> torch.device:
        """Where operations put their results: the CPU. materialize(device=) decides for data."""
        import torch

        return torch.device("cpu")

    @property
    def layout(self) -> torch.layout:
        """torch.strided."""
        import torch

        return torch.strided

    @property
    def data(self) -> Self:
        """The tensor itself: no gradient flows through it."""
        return self

    def dim(self) -> int:
        """Number of axes."""
        return self.ndim

    def ndimension(self) -> int:
        """Number of axes, as `dim()`."""
        return self.ndim

    def nelement(self) -> int:
        """Number of elements, as `numel()`."""
        return self.numel()

    def element_size(self) -> int:
        """Bytes an element takes."""
        return self.itemsize

    @overload
    def size(self, dim: None = None) -> torch.Size: ...
    @overload
    def size(self, dim: int) -> int: ...
    def size(self, dim: int | None = None) -> torch.Size | int:
        """The shape, or the size of one axis. IndexError: no such axis."""
        return self.shape if dim is None else self.dims[as_axis(dim, self.ndim)]

    @overload
    def stride(self, dim: None = None) -> tuple[int, ...]: ...
    @overload
    def stride(self, dim: int) -> int: ...
    def stride(self, dim: int | None = None) -> tuple[int, ...] | int:
        """Elements between neighbours along each axis, or along one, once materialised. IndexError: no such axis."""
        strides, pitch = [], 1
        for size in reversed(self.dims):
            strides.append(pitch)
            pitch *= max(size, 1)
        strides.reverse()
        return tuple(strides) if dim is None else strides[as_axis(dim, self.ndim)]

    def is_floating_point(self) -> bool:
        """Whether the dtype is a real floating-point one."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """Whether the dtype is complex."""
        return self.dtype.is_complex

    @overload
    def to(self, dtype: torch.dtype, non_blocking: bool = ..., copy: bool = ..., **kwargs: Any) -> Self: ...
    @overload
    def to(self, *args: Any, **kwargs: Any) -> Any: ...
    def to(self, *args: Any, **kwargs: Any) -> Any:
        """The tensor in another dtype, lazily; on another device, read.

        >>> import torch, lazysd
        >>> lazysd.from_torch(torch.ones(2)).to(torch.bfloat16)
        LazyTensor(bf16[2], 4 B, cast from f32)

        Args:
            args: as in torch: to(dtype), to(device), to(device, dtype), or to(other) for the dtype and device of
                another tensor; also by name. `non_blocking`, `copy` and `memory_format` are taken and change nothing.

        Returns:
            A lazy tensor for the CPU; for any other device a torch.Tensor there.

        Raises:
            TypeError: arguments of another kind. RuntimeError: no such device. As `materialize` where it reads.
        """
        device, dtype = _place(args, kwargs)
        lazy = self if dtype is None else cast(self, dtypes.from_torch(dtype))
        if device is None or device.type == "cpu":
            return lazy
        return lazy.materialize(device=device)

    def float(self, *, memory_format: Any = None) -> Self:
        """The tensor in float32, lazily."""
        return cast(self, "F32")

    def double(self, *, memory_format: Any = None) -> Self:
        """The tensor in float64, lazily."""
        return cast(self, "F64")

    def half(self, *, memory_format: Any = None) -> Self:
        """The tensor in float16, lazily."""
        return cast(self, "F16")

    def bfloat16(self, *, memory_format: Any = None) -> Self:
        """The tensor in bfloat16, lazily."""
        return cast(self, "BF16")

    def cpu(self, *, memory_format: Any = None) -> Self:
        """The tensor itself, lazy: materialize() reads it into host memory."""
        return self

    def cuda(self, device: Any = None, non_blocking: bool = False, *, memory_format: Any = None) -> torch.Tensor:
        """Read the tensor into memory of a GPU.

        Args:
            device: which one, as a number, "cuda:1" or a torch.device; None is the current one.

        Returns:
            A torch.Tensor there.

        Raises:
            As `materialize`. RuntimeError: no such device.
        """
        return self.materialize(device="cuda" if device is None else device)

    def contiguous(self, *, memory_format: Any = None) -> Self:
        """The tensor itself: what is materialised is contiguous."""
        return self

    def is_contiguous(self, *, memory_format: Any = None) -> bool:
        """Whether it will be contiguous, row-major or in `memory_format`, once materialised."""
        import torch

        if not isinstance(memory_format, (torch.memory_format, type(None))):
            raise TypeError(f"memory_format has to be a torch.memory_format, not {kind_of(memory_format)}")
        if memory_format in (None, torch.contiguous_format, torch.preserve_format):
            return True
        return torch.empty(self.dims, device="meta").is_contiguous(memory_format=memory_format)

    def detach(self) -> Self:
        """The tensor itself: no gradient flows through it."""
        return self

    def clone(self, *, memory_format: Any = None) -> Self:
        """The tensor itself: nothing can write to it, so that one will do."""
        return self


def _place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.device | None, torch.dtype | None]:
    """The device and the dtype that the arguments of to() name."""
    import torch

    first: Any = args[0] if args else next((kwargs[key] for key in ("other", "tensor") if key in kwargs), None)
    is_other = isinstance(first, (torch.Tensor, Casting))
    form = "other" if is_other else "dtype" if isinstance(first, torch.dtype) else "device"
    names = _FORMS[form]
    if len(args) > len(names):
        raise TypeError(f"to() takes at most {len(names)} arguments after {form}, got {len(args)}")
    given = dict(zip(names, args, strict=False))
    for key, value in kwargs.items():
        name = "other" if key == "tensor" else key
        if name in given or name not in (*names, "memory_format", "dtype" if form != "other" else "other"):
            raise TypeError(f"to() got {key!r} twice, or beside arguments that do not go with it")
        given[name] = value
    for key in ("non_blocking", "copy"):
        if not isinstance(given.get(key, False), bool):
            raise TypeError(f"to(): {key} has to be True or False, got {shown(given[key])}")
    if is_other:
        return torch.device(first.device), first.dtype
    device, dtype = given.get("device"), given.get("dtype")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"to(): dtype has to be a torch.dtype, got {type(dtype).__name__} {shown(dtype)}")
    return None if device is None else device_of(device), dtype

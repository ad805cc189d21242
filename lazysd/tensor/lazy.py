"""LazyTensor: a node as users hold it. Reading, slicing, torch's methods and functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..arguments import checked
from .casting import Casting
from .operators import Operators
from .parting import Parting
from .shaping import Shaping

if TYPE_CHECKING:
    from ..stats import Stats


class LazyTensor(Operators, Shaping, Parting, Casting):
    """A tensor that has not been read: shape and dtype are known, bytes move on `materialize()`.

    It is a duck type, not a `torch.Tensor` subclass. Structural operations (indexing, permute, transpose, reshape,
    split, to) return lazy tensors and read nothing; any other method or function of torch reads what it needs.
    """

    __slots__ = ()

    def __getitem__(self, key: Any) -> LazyTensor:
        """Part of the tensor, lazily, by torch's subscripts: ints, slices, None, ..., a list, a mask, an index tensor.

        Raises:
            IndexError: out of range, or a subscript that is refused, with the reason.
        """
        from .indexing import index

        return index(self, key)

    @checked
    def stats(self, max_memory: int | str = "128MB", workers: int | None = None) -> Stats:
        """What its values are like: min, max, mean, std, zeros, NaN, quantiles, a histogram.

        Reads the tensor once, tile by tile, in `max_memory` bytes; nothing is kept.

        >>> import torch, lazysd
        >>> found = lazysd.from_torch(torch.tensor([0.0, 1.0, 3.0, float("nan")])).stats()
        >>> found.max, found.num_zeros, found.num_nan
        (3.0, 1, 1)

        Args:
            max_memory: bytes for tiles and temporaries, or "128MB".
            workers: threads; None uses the CPUs there are, as far as `max_memory` allows.

        Raises:
            TypeError: the elements are no real numbers. MemoryBudgetError: `max_memory` is too little.
        """
        from ..stats import stats_of

        found = stats_of({"": self}, workers, max_memory)
        if not found:
            raise TypeError(f"stats() needs real numbers, and the elements are {self.code}")
        return found[""]

    def __getattr__(self, name: str) -> Any:  # every other method of torch.Tensor: it reads. Looking it up does not
        if name.startswith("__"):
            raise AttributeError(name)
        from .torch_functions import reading_method

        return reading_method(self, name)

    def __len__(self) -> int:
        if not self.dims:
            raise TypeError("len() of a 0-d tensor")
        return self.dims[0]

    def __iter__(self) -> Iterator[LazyTensor]:
        return (self[index] for index in range(len(self)))

    def _operate(self, name: str, others: Any) -> Any:  # what tensor.operators calls
        from .torch_functions import operate

        return operate(self, name, others)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .torch_functions import torch_function

        return torch_function(func, types, args, kwargs or {})

    def __format__(self, spec: str) -> str:
        return format(self.materialize().item(), spec) if spec and not self.dims else format(repr(self), spec)

    def _repr_html_(self) -> str:
        from ..display.html import to_html

        return to_html(self)

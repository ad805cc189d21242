"""Operators of lazy tensors: arithmetic and comparisons read their operands and give torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import ReadOnlyError


def _reading(name: str) -> Callable[..., Any]:
    def operator(self: Any, *others: Any) -> Any:
        return self._operate(name, others)

    operator.__name__ = name
    return operator


def _writing(name: str) -> Callable[..., NoReturn]:
    def operator(self: Any, *others: Any) -> NoReturn:
        raise ReadOnlyError(f"{name} would write into a lazy tensor; {WRITE_HINT}")

    operator.__name__ = name
    return operator


WRITE_HINT = "call materialize() and write into the tensor it returns"


class Operators:
    """What Python looks up on the type. Structural operators (indexing, len, iter) are LazyTensor's own."""

    __slots__ = ()
    __array_priority__ = 1000  # numpy arrays leave `array + lazy` to us, as they do for torch tensors
    __hash__ = object.__hash__  # by identity, as torch tensors

    __add__, __radd__ = _reading("__add__"), _reading("__radd__")
    __sub__, __rsub__ = _reading("__sub__"), _reading("__rsub__")
    __mul__, __rmul__ = _reading("__mul__"), _reading("__rmul__")
    __matmul__, __rmatmul__ = _reading("__matmul__"), _reading("__rmatmul__")
    __truediv__, __rtruediv__ = _reading("__truediv__"), _reading("__rtruediv__")
    __floordiv__, __rfloordiv__ = _reading("__floordiv__"), _reading("__rfloordiv__")
    __mod__, __rmod__ = _reading("__mod__"), _reading("__rmod__")
    __pow__, __rpow__ = _reading("__pow__"), _reading("__rpow__")
    __and__, __rand__ = _reading("__and__"), _reading("__rand__")
    __or__, __ror__ = _reading("__or__"), _reading("__ror__")
    __xor__, __rxor__ = _reading("__xor__"), _reading("__rxor__")
    __lshift__, __rshift__ = _reading("__lshift__"), _reading("__rshift__")
    __neg__, __pos__, __abs__, __invert__ = map(_reading, ("__neg__", "__pos__", "__abs__", "__invert__"))
    __lt__, __le__, __gt__, __ge__ = map(_reading, ("__lt__", "__le__", "__gt__", "__ge__"))
    __eq__, __ne__ = _reading("__eq__"), _reading("__ne__")
    __bool__, __int__, __float__, __index__ = map(_reading, ("__bool__", "__int__", "__float__", "__index__"))
    __complex__, __contains__ = _reading("__complex__"), _reading("__contains__")
    __reversed__ = _reading("__reversed__")  # flipped along the first axis, as torch does

    __setitem__, __delitem__ = _writing("__setitem__"), _writing("__delitem__")
    __iadd__, __isub__, __imul__ = map(_writing, ("+=", "-=", "*="))
    __itruediv__, __ifloordiv__, __imod__, __ipow__ = map(_writing, ("/=", "//=", "%=", "**="))
    __iand__, __ior__, __ixor__, __ilshift__, __irshift__ = map(_writing, ("&=", "|=", "^=", "<<=", ">>="))
    __imatmul__ = _writing("@=")

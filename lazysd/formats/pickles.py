"""Reading pickles by name: plain values and records of a fixed list of names; no code that a file brings along runs.

What a pickle makes is bounded by its length: nothing is allocated by a claimed size, few bytes never make many objects,
and tuples never nest so that hashing one takes longer than reading it.

Source: Python's pickle opcodes; torch 2.13, serialization.py and _utils.py.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from ..errors import FormatError, UnsupportedCheckpointError
from ..stores.strict_json import show

MAX_AXES = 64
MAX_TUPLE_WEIGHT = 1000  # elements of a tuple and of the tuples in it, each counted as often as it stands there
FEW = 10_000  # objects that any pickle may make; beyond them, it needs NBYTES_EACH bytes for each
NBYTES_EACH = 4
_LIMIT = 2**63
_PLAIN = re.compile(r"(?:bool|(?:complex|float|bfloat|q?u?int|bits)\w*|\w+Storage)", re.ASCII)  # dtypes, storages
_Opcodes = dict[int, Callable[[Any], None]]


class Name(NamedTuple):
    """A name that a pickle refers to, or what it makes of arguments: a dtype, a storage, a tensor."""

    name: str
    args: Any = ()


class Record:
    """An object of a pickle, as its class name and its state; its class is never imported."""

    name = ""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def _tensor(args: tuple[Any, ...], marks: tuple[Any, ...]) -> Name:
    """A tensor over a storage. Raises UnsupportedCheckpointError where its values are not the bits that are stored."""
    marked = [name for name in ("conj", "neg") for said in marks if isinstance(said, dict) and said.get(name)]
    if marked:
        raise UnsupportedCheckpointError(
            f"a tensor is stored as a view that torch marks {' and '.join(marked)}: its values are not the bits in the "
            "file; save it again after resolve_conj() and resolve_neg()"
        )
    return Name("tensor", args)


TENSORS: Mapping[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _tensor(args[:4], args[6:]),
    ("torch._utils", "_rebuild_tensor_v3"): lambda *args: _tensor((*args[:4], args[6]), args[7:]),
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch.storage", "UntypedStorage"): Name("UntypedStorage"),
}


class _Unpickler(pickle._Unpickler):
    """Reads plain values and the names it was given; refuses every other name.

    The unpickler written in Python: the one in C takes 32 GB of memory where five bytes of a pickle ask for it.
    """

    dispatch: ClassVar[_Opcodes] = dict(pickle._Unpickler.dispatch)

    def __init__(self, data: bytes, where: str, names: Mapping[tuple[str, str], Any]):
        super().__init__(io.BytesIO(data))
        self.where, self.names = where, names
        self.left = FEW + len(data) // NBYTES_EACH
        self.weights: dict[
            int, tuple[Any, int]
        ] = {}  # of tuples that hold tuples, which are kept alive: ids stay theirs

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.names:
            return self.names[module, name]
        if module == "torch" and _PLAIN.fullmatch(name):
            return Name(name)
        raise UnsupportedCheckpointError(
            f"{self.where}: its pickle asks for {show(f'{module}.{name}')}, which is no part of a plain tensor or of "
            "torch.distributed.checkpoint's metadata; lazysd does not run code from checkpoints"
        )

    def persistent_load(self, ident: Any) -> Any:
        return Name("storage", ident)

    def count(self) -> None:
        """One more object that takes much more memory than its opcode."""
        self.left -= 1
        if self.left < 0:
            raise ValueError("it makes far more objects than its length allows for")

    def weigh(self) -> None:
        """Look at the tuple on top of the stack."""
        made: Any = self.stack[-1]  # type: ignore[attr-defined]
        weight = len(made)
        for item in made:
            if type(item) is tuple:
                weight += self.weights[id(item)][1] if id(item) in self.weights else len(item)
        if weight > MAX_TUPLE_WEIGHT:
            raise ValueError(f"it nests tuples of more than {MAX_TUPLE_WEIGHT} elements")
        if weight > len(made):
            self.weights[id(made)] = made, weight


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def counting(self: _Unpickler) -> None:
        self.count()
        load(self)

    return counting


def _weighed(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def weighing(self: _Unpickler) -> None:
        load(self)
        self.weigh()

    return weighing


_TINY = (pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.MEMOIZE, pickle.MARK)
for _opcode in _TINY:
    _Unpickler.dispatch[_opcode[0]] = _counted(_Unpickler.dispatch[_opcode[0]])
for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _Unpickler.dispatch[_opcode[0]] = _weighed(_Unpickler.dispatch[_opcode[0]])


def unpickle(data: bytes, where: str, names: Mapping[tuple[str, str], Any], step: str) -> Any:
    """The value of a pickle.

    Args:
        data, where: the pickle, and what messages call it.
        names: (module, name) -> what stands for it. Dtypes and storages of torch need no entry.
        step: what a user may do about a damaged one.

    Raises:
        UnsupportedCheckpointError: it asks for another name. FormatError: it is damaged, or larger than it looks.
    """
    try:
        return _Unpickler(data, where, names).load()
    except UnsupportedCheckpointError as error:
        raise UnsupportedCheckpointError(str(error) if where in str(error) else f"{where}: {error}") from None
    except Exception as error:
        raise FormatError(f"{where}: cannot be read ({type(error).__name__}: {show(str(error))}); {step}") from error


def sizes_of(values: Any) -> tuple[int, ...]:
    """Sizes, offsets: a few whole numbers that are not negative."""
    if not isinstance(values, (tuple, list)):
        raise ValueError(f"expected sizes, found {show(values)}")
    if len(values) > MAX_AXES or any(type(value) is not int or not 0 <= value < _LIMIT for value in values):
        raise ValueError(f"expected sizes, found {show(list(values[:MAX_AXES]))}")
    return tuple(values)

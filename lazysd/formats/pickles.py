"""Reading pickles by name: plain values and records of a fixed list of names; no code that a file brings along runs.

What a pickle makes is bounded by its length: nothing is allocated by a claimed size, all that is made takes at most
`most_nbytes(length)`, counted object by object, and tuples never nest so that hashing one takes longer than reading it.

Source: Python's pickle opcodes; torch 2.13, serialization.py and _utils.py.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from sys import getsizeof
from typing import Any, ClassVar, NamedTuple

from ..errors import FormatError, UnsupportedCheckpointError
from ..stores.strict_json import show

MAX_AXES = 64
MAX_TUPLE_WEIGHT = 1000  # elements of a tuple and of the tuples in it, each counted as often as it stands there
TIMES = 14  # bytes of memory that each byte of a pickle may take; those of torch take 6 to 10
_FREE_NBYTES = 64 << 10  # that any pickle may take
_SLOT_NBYTES = 9  # of a list, as lists grow
_MARK_NBYTES = 100  # of a stack that a mark begins
_SMALL_NBYTES = 4 << 10  # of a pickle that cannot make more than a megabyte, whatever it does
_HEAVY = 32  # elements of a tuple, counted so, that is not looked into again
_LIMIT = 2**63
_Load = Callable[[Any], None]
_PLAIN = re.compile(r"(?:bool|(?:complex|float|bfloat|q?u?int|bits)\w*|\w+Storage)", re.ASCII)  # dtypes, storages


class Name(NamedTuple):
    """A name that a pickle refers to, or what it makes of arguments: a dtype, a storage, a tensor."""

    name: str
    args: Any = ()


class Record:
    """An object of a pickle: its class name and what of its state is asked for; its class is never imported."""

    __slots__ = ("state",)
    name = ""
    fields: tuple[str, ...] = ()  # of a state with names, the ones that are kept
    state: Any  # their values in this order, None where it lacks one; what has no names is kept as it is

    def __init__(self, *args: Any) -> None:
        """What it is made of is in its state."""

    def __setstate__(self, state: Any) -> None:
        self.state = tuple(map(state.get, self.fields)) if isinstance(state, dict) else state

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def record(name: str, *fields: str) -> type[Record]:
    """A class of records."""
    return type(name, (Record,), {"name": name, "fields": fields, "__slots__": ()})


class _Memo(list[Any]):
    """What a pickle refers to again, by its number; numbers come one after the other, from 0 or from 1 on."""

    def __setitem__(self, number: Any, value: Any) -> None:
        if number > len(self) + 1:
            raise ValueError(f"number {number} of its memo comes behind {len(self)}")
        if number > len(self):
            self.append(None)
        if number == len(self):
            self.append(value)
        else:
            super().__setitem__(number, value)


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


class _Small(pickle._Unpickler):
    """Reads plain values and the names it was given; refuses every other name.

    The unpickler written in Python: the one in C takes 32 GB of memory where five bytes of a pickle ask for it.
    """

    dispatch: ClassVar[dict[int, _Load]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    metastack: list[list[Any]]

    def __init__(self, data: bytes, where: str, names: Mapping[tuple[str, str], Any]):
        super().__init__(io.BytesIO(data))
        self.where, self.names = where, names
        self.weights: dict[int, tuple[Any, int]] = {}  # of heavy tuples, which are kept alive: ids stay theirs

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

    def weigh(self) -> None:
        """Look at the tuple on top of the stack, and into the tuples in it that are not heavy."""
        made: Any = self.stack[-1]
        weight, todo = 0, [made]
        while todo:
            item = todo.pop()
            if heavy := self.weights.get(id(item)):
                weight += heavy[1]
            else:
                weight += len(item)
                todo += [part for part in item if type(part) is tuple]
            if weight > MAX_TUPLE_WEIGHT:
                raise ValueError(f"it nests tuples of more than {MAX_TUPLE_WEIGHT} elements")
        if weight > _HEAVY:
            self.weights[id(made)] = made, weight


def _weighed(load: _Load) -> _Load:
    def weighing(self: _Small) -> None:
        load(self)
        self.weigh()

    return weighing


for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _Small.dispatch[_opcode[0]] = _weighed(_Small.dispatch[_opcode[0]])
for _opcode in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4):
    del _Small.dispatch[_opcode[0]]  # no file of torch's has them


class _Metered(_Small):
    """Keeps count of the memory that all takes, too."""

    dispatch: ClassVar[dict[int, _Load]] = dict(_Small.dispatch)

    def __init__(self, data: bytes, where: str, names: Mapping[tuple[str, str], Any]):
        super().__init__(data, where, names)
        self.memo = _Memo()
        self.left = most_nbytes(len(data))

    def charge(self, nbytes: int) -> None:
        """So much memory more is taken; less, where it is negative."""
        self.left -= nbytes
        if self.left < 0:
            raise ValueError("what it makes takes far more memory than its length allows for")

    def pop_mark(self) -> list[Any]:
        """What stands above the last mark, which is gone with it."""
        found: list[Any] = super().pop_mark()  # type: ignore[misc]
        self.charge(-_MARK_NBYTES - _SLOT_NBYTES * len(found))
        return found

    def build(self) -> None:
        """Give a record its state; what is no longer needed of that is let go, though the memo keeps it."""
        state = self.stack[-1]
        self.load_build()  # type: ignore[attr-defined]
        if type(state) is dict and isinstance(self.stack[-1], Record):
            before = getsizeof(state)
            state.clear()
            self.charge(getsizeof(self.stack[-1].state) + getsizeof(state) - before)


_MAKING = (  # opcodes that leave a new object on the stack
    *("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "LIST", "DICT", "FROZENSET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "INT", "BININT", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT"),
    *("BINFLOAT", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "REDUCE", "PERSID", "BINPERSID", "GLOBAL", "STACK_GLOBAL"),
)
_GROWING = {"SETITEMS": 0, "APPENDS": 0, "ADDITEMS": 0, "SETITEM": 3, "APPEND": 2}  # what lies so deep; 0: below a mark
_ASIDE = {"MARK": _MARK_NBYTES} | dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), 2 * _SLOT_NBYTES)
_ASIDE |= dict.fromkeys(("MEMOIZE", "TUPLE", "LIST", "DICT", "FROZENSET", "OBJ", "INST"), _SLOT_NBYTES)
# What they take besides: a place in the memo, or on the stack below the mark.


def _metered(name: str, load: _Load) -> _Load:
    """The opcode, its memory charged."""
    makes, depth, aside = name in _MAKING, _GROWING.get(name), _ASIDE.get(name, 0)

    def loading(self: _Metered) -> None:
        stack = self.stack
        before = len(stack)
        load(self)
        nbytes = aside + _SLOT_NBYTES * (len(stack) - before)
        self.charge(nbytes + getsizeof(self.stack[-1]) if makes else nbytes)

    def growing(self: _Metered) -> None:
        grown = self.stack[-depth] if depth else self.metastack[-1][-1]
        before = getsizeof(grown)
        load(self)
        self.charge(getsizeof(grown) - before - _SLOT_NBYTES * max(0, (depth or 0) - 1))

    return loading if depth is None else growing


for _name in filter(str.isupper, pickle.__all__):
    _opcode = getattr(pickle, _name)
    if isinstance(_opcode, bytes) and len(_opcode) == 1 and _opcode[0] in _Metered.dispatch:
        _Metered.dispatch[_opcode[0]] = _metered(_name, _Metered.dispatch[_opcode[0]])
_Metered.dispatch[pickle.BUILD[0]] = _Metered.build


def most_nbytes(length: int) -> int:
    """The memory that what a pickle of so many bytes makes may take."""
    return _FREE_NBYTES + TIMES * length


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
        kind = _Small if len(data) <= _SMALL_NBYTES else _Metered
        return kind(data, where, names).load()
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

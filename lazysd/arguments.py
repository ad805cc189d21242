"""Arguments of public functions: held against their annotations before anything is done with them.

A wrong kind of argument is a TypeError that names it, as everywhere in Python, and not whatever breaks first.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

F = TypeVar("F", bound=Callable[..., Any])
Check = Callable[[Any], bool]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
MAX_DEPTH = 64  # of mappings in mappings, as in JSON files: what walks them recurses


def checked(function: F) -> F:
    """A public function, or class, that refuses arguments of another kind than its annotations say, by a TypeError.

    Keys and values of mappings, and elements of lists, tuples and sets, are looked at; iterators are not consumed.
    """
    if isinstance(function, type):  # a dataclass
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        names, rest, checks = _checks(function)
        given = {
            **dict(zip(names, args, strict=False)),
            **kwargs,
        }  # what is missing or too many, the call itself refuses
        if rest and len(args) > len(names):
            given[rest] = args[len(names) :]
        for name, fits, words in checks:
            if name in given and not fits(given[name]):
                called = function.__qualname__.removesuffix(".__init__")
                raise TypeError(f"{called}(): {name} has to be {words}, not {kind_of(given[name])}")
        return function(*args, **kwargs)

    return checking  # type: ignore[return-value]


def as_int(name: str, value: Any) -> int:
    """An integer, or an integer scalar of any library. TypeError for everything else, True and False included."""
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
            raise TypeError
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} has to be an int, got {kind_of(value)}") from None
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{name} has to fit 64 bits, got a number {shown(number)}")
    return number


def kind_of(value: Any) -> str:
    """What a value is, for an error that refuses it: its type, and the value where that is short."""
    return f"{type(value).__name__} {shown(value)}".rstrip()


def shown(value: Any) -> str:
    """A value in an error: short, whatever it is."""
    if isinstance(value, int) and not -(10**18) < value < 10**18:
        return f"of {value.bit_length()} bits"
    if isinstance(value, (list, tuple)):
        inner = ("…" if isinstance(item, (list, tuple)) else shown(item) for item in value[:4])
        return f"({', '.join(inner)}{', …' if len(value) > 4 else ''})"
    text = repr(value) if isinstance(value, (int, float, str, bytes, type(None))) else ""
    return text if len(text) <= 40 else text[:37] + "…"


@functools.cache
def _checks(function: Any) -> tuple[list[str], str, list[tuple[str, Check, str]]]:
    """Made at the first call: the positional parameters; the name of `*args`; the checks.

    A check is a parameter that is annotated, whether a value fits it, and in words what does.
    """
    signature, found = inspect.signature(function), []
    names = [one.name for one in signature.parameters.values() if one.kind in _POSITIONAL]
    rest = next((one.name for one in signature.parameters.values() if one.kind is one.VAR_POSITIONAL), "")
    for parameter in signature.parameters.values():
        text = parameter.annotation
        if not isinstance(text, str) or text in ("Any", "object") or parameter.kind is parameter.VAR_KEYWORD:
            continue
        fits = _fits(text, inspect.unwrap(function).__globals__)
        if parameter.kind is parameter.VAR_POSITIONAL:
            fits = _each(fits)
        found.append((parameter.name, fits, text.replace(" | ", " or ")))
    return names, rest, found


def _fits(text: str, names: Mapping[str, Any]) -> Check:
    """What an annotation asks of a value; `names` are those that its module knows."""
    parts = _split(text, "|")
    choices = [_one(choice, names) for choice in parts]
    if any(part.startswith("os.PathLike") for part in parts):  # names of files may be no text
        choices.append(functools.partial(_is_kind, (str,)))
    return choices[0] if len(choices) == 1 else lambda value: any(fits(value) for fits in choices)


def _one(text: str, names: Mapping[str, Any]) -> Check:
    name, _, inner = text.removesuffix("]").partition("[")
    parts = _split(inner, ",") if inner else []
    if name in _PLAIN:
        return _PLAIN[name]
    if name == "Mapping":
        keys, values = (_fits(part, names) for part in parts)
        return lambda value: _is_mapping(value, keys, None if parts[1] == "Any" else values)
    if name in _ROWS:
        each = [_fits(part, names) for part in parts if part != "..."]
        fixed = name == "tuple" and "..." not in parts
        return lambda value: isinstance(value, _ROWS[name]) and _is_row(value, each, fixed)
    if name in names and not isinstance(names[name], type):  # an alias: what it stands for, elements aside
        kinds = get_args(names[name]) if isinstance(names[name], UnionType) else (names[name],)
        return functools.partial(_is_kind, tuple(get_origin(kind) or kind for kind in kinds))
    return functools.partial(_is_a, name.rsplit(".", 1)[-1])


def _split(text: str, sign: str) -> list[str]:
    """The parts of an annotation between signs that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if char == sign and not depth:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


def _each(fits: Check) -> Check:
    return lambda values: _all(fits, values)


def _is_kind(kinds: tuple[type, ...], value: Any) -> bool:
    return isinstance(value, kinds)


def _is_a(name: str, value: Any) -> bool:
    """Whether a value is of lazysd's or torch's class of that name. Imports neither."""
    return any(c.__name__ == name and c.__module__.split(".")[0] in ("lazysd", "torch") for c in type(value).__mro__)


def _all(fits: Check, values: Iterable[Any]) -> bool:
    """Whether all values fit; a hundred thousand keys are looked at in one go."""
    if fits is _is_text:
        texts = tuple(values)
        return all(issubclass(kind, str) for kind in set(map(type, texts))) and _is_text("".join(texts))
    if isinstance(fits, functools.partial):  # a question of types alone
        values = {type(value): value for value in values}.values()
    return all(map(fits, values))


def _is_text(value: Any) -> bool:
    """A str that can be written anywhere: no half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _is_mapping(value: Any, keys: Check, values: Check | None) -> bool:
    if not isinstance(value, Mapping):
        return False
    if _is_a("Checkpoint", value) or _is_a("LazyTensors", value):  # of our own making, and made when asked for
        return True
    if values is not None:
        return _all(keys, value) and _all(values, value.values())
    return _all(keys, value) and _is_shallow(value)


def _is_row(value: Any, each: list[Check], fixed: bool) -> bool:
    if isinstance(value, (str, bytes)) or hasattr(value, "shape"):  # iterable, and never what is meant
        return False
    if not isinstance(value, (list, tuple, set, frozenset, Mapping)):
        return True
    if fixed:
        return len(value) == len(each) and all(fits(item) for fits, item in zip(each, value, strict=True))
    return all(_all(fits, value) for fits in each)


def _is_shallow(value: Mapping[str, Any]) -> bool:
    """Whether mappings and lists nest no deeper than MAX_DEPTH, and hold none of themselves."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: dict[int, Any] = {}
        for one in level:
            for item in one.values() if isinstance(one, Mapping) else one:
                if isinstance(item, (dict, list, tuple)):
                    inner[id(item)] = item
        level = list(inner.values())
        if not level:
            return True
    return False


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ == "bool"  # numpy's is a class of its own


def _is_small(value: Any) -> bool:
    """Whether a number is a float, or an int that one can hold."""
    return not isinstance(value, int) or abs(value) < 1 << 1000


_PLAIN: dict[str, Check] = {
    "Any": lambda value: True,
    "None": lambda value: value is None,
    "bool": _is_bool,
    "bytes": lambda value: isinstance(value, (bytes, bytearray, memoryview)),  # as everywhere in Python
    "float": lambda value: not isinstance(value, bool) and isinstance(value, numbers.Real) and _is_small(value),
    "int": lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool),
    "os.PathLike": lambda value: isinstance(value, os.PathLike),
    "str": _is_text,
    "Callable": callable,
    "type": lambda value: isinstance(value, type),
}
_ROWS: dict[str, Any] = {"Iterable": Iterable, "Sequence": Sequence, "list": list, "tuple": (tuple, list)}

"""Whether two values hold the same bytes, and if not, where: whatever the values are, the answer is an assertion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from ..arguments import checked, shown
from ..tensor.lazy import LazyTensor

MAX_LISTED = 5


@dataclass(frozen=True)
class Terms:
    """What counts as the same."""

    ignore: tuple[str, ...] = ()  # globs of keys that are not compared
    rtol: float = 0.0  # with atol: values instead of bits
    atol: float = 0.0
    zero_signs: bool = True  # whether -0.0 differs from 0.0
    rename: Mapping[str, str] | None = None  # key of the one side -> key of the other

    def __post_init__(self) -> None:
        for name, bound in (("rtol", self.rtol), ("atol", self.atol)):
            if not 0 <= bound < math.inf:
                raise ValueError(f"{name} has to be a number from 0 on, not {shown(bound)}")

    def counts(self, key: str) -> bool:
        """Whether a key is compared."""
        return not any(fnmatchcase(key, glob) for glob in self.ignore)


EXACT = Terms()


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as integers of the same width, so that NaN payloads and signs of zeros count."""
    held = tensor.detach().contiguous()
    if held.dtype.is_complex or held.element_size() not in (1, 2, 4, 8):
        return held.view(torch.uint8)
    return held.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[held.element_size()])


def tensor_of(value: Any) -> Any:
    """A lazy tensor read, a DTensor's local part; anything else as it is."""
    value = value.materialize() if isinstance(value, LazyTensor) else value
    return getattr(value, "_local_tensor", value)


def problems_of(found: Mapping[str, Any], expected: Mapping[str, Any], terms: Terms = EXACT) -> list[str]:
    """Every difference of two state dicts, one line each: keys first, then values in the order expected."""
    renamed = {(terms.rename or {}).get(key, key): value for key, value in found.items()}
    here = {key: value for key, value in renamed.items() if terms.counts(str(key))}
    there = {key: value for key, value in expected.items() if terms.counts(str(key))}
    problems = []
    for what, keys in (("missing", there.keys() - here.keys()), ("unexpected", here.keys() - there.keys())):
        if keys:
            shown = ", ".join(sorted(map(str, keys))[:MAX_LISTED])
            problems.append(f"{len(keys)} {what}: {shown}{', …' if len(keys) > MAX_LISTED else ''}")
    for key, value in there.items():
        if key in here and (problem := difference(here[key], value, terms)):
            problems.append(f"{key}: {problem}")
    return problems


def raise_listed(problems: Iterable[str], start: str = "") -> None:
    """AssertionError with the first problems and how many more there are; nothing where there are none."""
    if not (problems := list(problems)):
        return
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    raise AssertionError("\n".join([*([start] if start else []), *problems[:MAX_LISTED], *more]))


def difference(found: Any, expected: Any, terms: Terms = EXACT) -> str | None:
    """What differs between two values, None where nothing does.

    Tensors by shape, dtype, device kind where one has no data, and bits; mappings and sequences part by part; anything
    else by type and `==`.
    """
    sides = [isinstance(value, (torch.Tensor, LazyTensor)) for value in (found, expected)]
    if all(sides):
        return _tensors(found, expected, terms)
    if any(sides) or type(found) is not type(expected):
        return f"found {_kind(found)}, expected {_kind(expected)}"
    if isinstance(expected, Mapping):
        inner = problems_of(found, expected, terms)
        return "; ".join(inner) or None
    if isinstance(expected, (list, tuple)):
        if len(found) != len(expected):
            return f"found {len(found)} items, expected {len(expected)}"
        parts = (difference(a, b, terms) for a, b in zip(found, expected, strict=True))
        return next((f"[{k}] {problem}" for k, problem in enumerate(parts) if problem), None)
    same = found is expected or bool(found == expected) or (found != found and expected != expected)
    return None if same else f"found {_short(found)}, expected {_short(expected)}"


def _kind(value: Any) -> str:
    if isinstance(value, (torch.Tensor, LazyTensor)):
        return f"a tensor {value.dtype} {list(value.shape)}"
    return f"{type(value).__name__} {_short(value)}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _tensors(found: Any, expected: Any, terms: Terms) -> str | None:
    placed = [getattr(value, "placements", None) for value in (found, expected)]
    if placed[0] != placed[1]:
        return f"found placements {placed[0]}, expected {placed[1]}"
    if tuple(found.shape) != tuple(expected.shape) or found.dtype != expected.dtype:
        return f"found {found.dtype} {list(found.shape)}, expected {expected.dtype} {list(expected.shape)}"
    here, there = tensor_of(found), tensor_of(expected)
    if here.is_meta or there.is_meta:
        return None if here.is_meta and there.is_meta else f"found it on {here.device}, expected it on {there.device}"
    if tuple(here.shape) != tuple(there.shape):
        return f"found a local part {list(here.shape)}, expected {list(there.shape)}"
    here, there = here.detach().cpu(), there.detach().cpu()
    if terms.rtol or terms.atol:
        return _values(here, there, terms)
    a, b = bits_of(here), bits_of(there)
    unequal = a != b
    if not terms.zero_signs and here.dtype.is_floating_point and unequal.any():
        unequal &= ~((here.float() == 0) & (there.float() == 0))
    if not unequal.any():
        return None
    return _first(unequal, here, a, b)


def _values(here: torch.Tensor, there: torch.Tensor, terms: Terms) -> str | None:
    wide = torch.complex128 if here.dtype.is_complex else torch.float64
    a, b = here.to(wide), there.to(wide)
    far = ~torch.isclose(a, b, rtol=terms.rtol, atol=terms.atol, equal_nan=True)
    if not far.any():
        return None
    at = tuple(far.nonzero()[0].tolist())
    shown = f"found {a[at].item()!r}, expected {b[at].item()!r} (rtol {terms.rtol:g}, atol {terms.atol:g})"
    return f"{int(far.sum())} of {here.numel()} elements differ, the first at {at}: {shown}"


def _first(unequal: torch.Tensor, here: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> str:
    at = tuple(unequal.nonzero()[0].tolist())
    mask = (1 << 8 * a.element_size()) - 1
    left, right = (int(side[at]) & mask for side in (a, b))
    count = f"{int(unequal.sum())} of {a.numel()} elements differ"
    return f"{count}, the first at {at}: found bits {left:#x}, expected {right:#x}"


@checked
def assert_same_bytes(
    found: Any,
    expected: Any,
    *,
    ignore: Iterable[str] = (),
    rtol: float = 0.0,
    atol: float = 0.0,
    zero_signs: bool = True,
) -> None:
    """Assert that two tensors, or two state dicts, have the same keys, shapes, dtypes and bits.

    Either side may hold lazy tensors; they are read one at a time. Bits are compared as integers: a NaN equals itself
    only with the same payload, and -0.0 differs from 0.0. Values that are no tensors are compared by type and `==`, of
    DTensors placements and this rank's parts, of meta tensors shapes and dtypes.

    >>> import torch
    >>> from lazysd.testing import assert_same_bytes
    >>> assert_same_bytes({"w": torch.tensor([0.0, torch.nan])}, {"w": torch.tensor([0.0, torch.nan])})
    >>> assert_same_bytes(torch.tensor([0.0]), torch.tensor([-0.0]))
    Traceback (most recent call last):
    AssertionError: 1 of 1 elements differ, the first at (0,): found bits 0x0, expected 0x80000000

    Args:
        found, expected: tensors, lazy tensors or state dicts.
        ignore: globs of keys that are not compared.
        rtol, atol: where one of them is not 0, values are compared instead of bits, in float64.
        zero_signs: False lets -0.0 equal 0.0.

    Raises:
        AssertionError: which key, and what differs.
    """
    terms = Terms(tuple(ignore), rtol, atol, zero_signs)
    if not isinstance(expected, Mapping) or not isinstance(found, Mapping):
        raise_listed([problem] if (problem := difference(found, expected, terms)) else [])
        return
    raise_listed(problems_of(found, expected, terms))

"""Assertions about converters: there and back is the same, two of them agree, what is broken is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch

from ..arguments import checked
from ..stores.strict_json import show
from ..tensor.lazy import LazyTensor
from .comparing import Terms, problems_of, raise_listed, tensor_of

Convert = Callable[[dict[str, Any]], Mapping[str, Any]]


@checked
def assert_round_trip(
    forward: Convert,
    backward: Convert,
    state_dict: Mapping[str, Any],
    *,
    changes: bool = False,
    consumes: Iterable[str] = (),
    ignore: Iterable[str] = (),
    rtol: float = 0.0,
    atol: float = 0.0,
    zero_signs: bool = True,
    contiguous: bool = False,
    shares_storage: bool = True,
) -> None:
    """Assert that `backward(forward(state_dict))` gives back every key and every byte, and edits nothing on the way.

    Both are plain functions from a dict of tensors to another; they need not be lazysd's. Each gets a dict of its own,
    so that popping keys from it is allowed; writing into the tensors is not. A converter that does nothing comes back
    unharmed: say what it has to change (`changes`, `consumes`), or compare it with a reference, see
    assert_same_conversion.

    >>> import torch
    >>> from lazysd.testing import assert_round_trip
    >>> def transpose(tensors):
    ...     return {key: tensor.T for key, tensor in tensors.items()}
    >>> assert_round_trip(transpose, transpose, {"w": torch.arange(6.0).reshape(2, 3)}, changes=True)

    Args:
        forward, backward: the two converters.
        state_dict: key -> tensor (lazy ones too), or anything else that is compared by `==`.
        changes: forward's result has to differ from its input.
        consumes: globs of keys that forward's result may not have any more, and the input must have.
        ignore, rtol, atol, zero_signs: as in assert_same_bytes.
        contiguous: tensors of both results have to be contiguous.
        shares_storage: False: no tensor of the results may share memory with one of the input.

    Raises:
        AssertionError: a key or byte that did not come back, a tensor that was edited in place, or nothing converted.
    """
    terms = Terms(tuple(ignore), rtol, atol, zero_signs)
    before = {key: _copied(value) for key, value in state_dict.items()}
    there = dict(forward(dict(state_dict)))
    raise_listed(problems_of(state_dict, before), "converting edited its input:")
    if changes and not problems_of(there, before):
        raise AssertionError("forward changed nothing: its result has the keys and bytes of its input")
    for glob in consumes:
        had, left = ([key for key in side if fnmatchcase(key, glob)] for side in (before, there))
        if not had:
            raise AssertionError(f"no key of the state dict matches {glob!r}: nothing shows that forward consumes it")
        raise_listed(left, f"forward left keys that match {glob!r} as they were:")
    held = dict(there)
    back = backward(there)
    for name, side in (("forward", held), ("backward", back)):
        raise_listed(_unlike(side, state_dict, contiguous, shares_storage), f"{name}'s result:")
    raise_listed(problems_of(state_dict, before), "converting edited its input:")
    raise_listed(problems_of(back, before, terms), "there and back is not the same:")


@checked
def assert_same_conversion(
    ours: Convert,
    reference: Convert,
    state_dict: Mapping[str, Any],
    *,
    rename: Mapping[str, str] | None = None,
    ignore: Iterable[str] = (),
    rtol: float = 0.0,
    atol: float = 0.0,
    zero_signs: bool = True,
) -> None:
    """Assert that two converters make the same keys and bytes of the same state dict.

    What a round trip cannot see, this does: a fault that both directions share, a converter that does nothing.

    >>> import torch, lazysd
    >>> from lazysd.testing import assert_same_conversion
    >>> upside = {"w": torch.arange(6.0).reshape(2, 3)}
    >>> assert_same_conversion(lambda sd: {k: t.T for k, t in sd.items()}, lambda sd: {"w": sd["w"].T}, upside)

    Args:
        ours, reference: the two; each gets a dict and tensors of its own.
        rename: key that `ours` gives -> key that `reference` gives for the same tensor.
        ignore, rtol, atol, zero_signs: as in assert_same_bytes.

    Raises:
        AssertionError: a key or byte in which they differ.
    """
    terms = Terms(tuple(ignore), rtol, atol, zero_signs, rename)
    made, wanted = (function({key: _copied(v) for key, v in state_dict.items()}) for function in (ours, reference))
    raise_listed(problems_of(made, wanted, terms), "the two conversions differ:")


@checked
def assert_refuses(
    convert: Convert,
    state_dict: Mapping[str, Any],
    key: str,
    *,
    errors: type[BaseException] | tuple[type[BaseException], ...] = (ValueError, KeyError, RuntimeError, TypeError),
    add: Mapping[str, Any] | None = None,
    rename: str | None = None,
    reshape: bool = False,
) -> BaseException:
    """Assert that a converter refuses a state dict in which one thing is wrong, instead of making something of it.

    By default `key` is dropped. The state dict has to convert as it is, which is checked first, so that the refusal is
    about the fault.

    >>> import torch, lazysd
    >>> from lazysd.testing import assert_refuses, state_dict
    >>> key = "model.layers.0.mlp.experts.{}.{}_proj.weight"
    >>> hf = state_dict({key.format(e, p): ("F32", (2, 2)) for e in range(2) for p in ("gate", "up", "down")})
    >>> "1 missing" in str(assert_refuses(lambda sd: lazysd.convert(sd, "nemo"), hf, key.format(1, "up")))
    True

    Args:
        convert: the converter.
        state_dict: one that converts.
        key: the key that is dropped, renamed, reshaped or doubled.
        errors: exceptions that count as a refusal.
        add: keys and values to add; nothing is dropped then. Doubling a key means adding its values under another name.
        rename: the key's new name; nothing is dropped then.
        reshape: give the tensor one more row instead.

    Returns:
        The exception, for a look at its message.

    Raises:
        AssertionError: it did not refuse, or refused the state dict as it is.
    """
    try:
        convert(dict(state_dict))
    except errors as error:
        raise AssertionError(f"the state dict is refused as it is, so this shows nothing: {error}") from error
    wrong = dict(state_dict)
    if key not in wrong:
        raise ValueError(f"assert_refuses(): key {show(key)} is not in the state dict")
    if add is not None:
        wrong |= add
        what = f"{', '.join(add)} added"
    elif rename is not None:
        wrong[rename] = wrong.pop(key)
        what = f"{key} renamed to {rename}"
    elif reshape:
        tensor = tensor_of(wrong[key])
        wrong[key] = torch.cat([tensor, tensor[:1]])
        what = f"{key} one row longer"
    else:
        del wrong[key]
        what = f"{key} dropped"
    try:
        made = convert(wrong)
    except errors as error:
        return error
    raise AssertionError(f"with {what}, the converter made {len(made)} tensors and said nothing")


def _copied(value: Any) -> Any:
    value = value.materialize() if isinstance(value, LazyTensor) else value
    return value.clone() if isinstance(value, torch.Tensor) else value


def _unlike(made: Mapping[str, Any], given: Mapping[str, Any], contiguous: bool, shares: bool) -> Iterator[str]:
    """What results may not be, one line each."""
    taken = {_storage(value): key for key, value in given.items() if _storage(value)}
    for key, value in made.items():
        if contiguous and isinstance(value, torch.Tensor) and not tensor_of(value).is_contiguous():
            yield f"{key} is not contiguous: strides {tuple(tensor_of(value).stride())}"
        if not shares and (owner := taken.get(_storage(value))):
            yield f"{key} shares its memory with the input's {owner}"


def _storage(value: Any) -> int:
    held = tensor_of(value) if isinstance(value, torch.Tensor) else None
    return 0 if held is None or held.is_meta else held.untyped_storage().data_ptr()


__all__ = ["assert_refuses", "assert_round_trip", "assert_same_conversion"]

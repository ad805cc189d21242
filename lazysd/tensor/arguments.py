"""Arguments as torch takes them: axes counted from either end, sizes as numbers or as one sequence."""

from __future__ import annotations

from typing import Any

from ..arguments import as_int, shown


def as_ints(name: str, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[int, ...]:
    """f(2, 3), f((2, 3)), f([2, 3]) and f(name=(2, 3)) are the same."""
    if set(named) - {name} or (values and named):
        raise TypeError(f"unexpected argument {next(iter(set(named) - {name}), name)!r}; expected {name}")
    if not values and not named:
        raise TypeError(f"missing argument {name!r}")
    given: Any = named.get(name, values)
    if len(values) == 1 and not hasattr(values[0], "__index__"):
        given = values[0]
    if not isinstance(given, (list, tuple)):  # as torch: no range, no array
        raise TypeError(f"{name} has to be ints, got {type(given).__name__} {shown(given)}")
    return tuple(as_int(name, value) for value in given)


def as_axis(dim: Any, ndim: int, scalar: bool = False) -> int:
    """A non-negative axis number; IndexError out of range, as torch. `scalar`: 0-d tensors take 0 and -1 too."""
    axis = as_int("dim", dim)
    bound = max(ndim, 1) if scalar else ndim
    if not -bound <= axis < bound:
        raise IndexError(f"axis {shown(axis)} is out of range for {ndim} axes")
    return axis % bound


def as_axes(dims: Any, ndim: int) -> list[int]:
    """Axis numbers of one dim or a sequence of them. RuntimeError where one is named twice."""
    given = [dims] if hasattr(dims, "__index__") else dims
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"dim has to be an int or ints, got {type(dims).__name__} {shown(dims)}")
    axes = [as_axis(dim, ndim, scalar=True) for dim in given]
    if len(set(axes)) != len(axes):
        raise RuntimeError(f"an axis is named twice in {shown(dims)}")
    return axes

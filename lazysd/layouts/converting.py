"""From one layout to another, straight where rules compose, else through the hub."""

from __future__ import annotations

from collections.abc import Mapping

from ..arguments import checked
from ..errors import LayoutError
from ..graph.building import many_nodes
from ..tensor.lazy import LazyTensor
from .composing import compose
from .rewriting import apply, apply_composed, check_passing
from .rule import Layout


@checked
@many_nodes()
def convert(
    tensors: Mapping[str, LazyTensor],
    origin: Layout,
    target: Layout,
    sizes: Mapping[str, int],
    firsts: Mapping[str, int] | None = None,
) -> dict[str, LazyTensor]:
    """From one layout to another. Builds a graph; reads nothing.

    Args:
        tensors: keys in `origin`.
        origin, target: layouts of one family.
        sizes: sizes of named axes, from config.json; "e" is the number of experts.
        firsts: numbers at which key axes start to count, where that is not 0.
    """
    if (made := straight(tensors, origin, target, sizes, firsts)) is not None:
        return made
    if origin.is_hub and origin is not target and _checks_all_of(target, origin):
        return from_hub(tensors, target, sizes, firsts)  # whose messages speak of what is being made
    hub = to_hub(tensors, origin, sizes, firsts)
    return dict(tensors) if origin is target else from_hub(hub, target, sizes, firsts)


def _checks_all_of(target: Layout, origin: Layout) -> bool:
    """Whether making `target` groups, and so checks, every key of the hub that `origin` has a rule for."""
    return not target.is_hub and {rule.hf for rule in origin.rules} <= {rule.hf for rule in target.rules}


def straight(
    tensors: Mapping[str, LazyTensor],
    origin: Layout,
    target: Layout,
    sizes: Mapping[str, int],
    firsts: Mapping[str, int] | None = None,
) -> dict[str, LazyTensor] | None:
    """The result where the rules of both layouts compose for these keys; None where the way leads through the hub."""
    composed = compose(origin, target, tensors)
    return None if composed is None else apply_composed(tensors, composed, sizes, firsts or {})


def to_hub(
    tensors: Mapping[str, LazyTensor],
    origin: Layout,
    sizes: Mapping[str, int],
    firsts: Mapping[str, int] | None = None,
    merged: bool = False,
) -> Mapping[str, LazyTensor]:
    """To the hub. A hub is checked, though nothing changes. `merged`: by the layout's merged rules."""
    if merged and not origin.merged:
        raise LayoutError(f"layout {origin.name!r} has no merged rules: what they would keep apart is one there")
    if origin.is_hub:
        check_passing(tensors, origin, sizes, firsts or {})
        return tensors
    return apply(tensors, origin, False, sizes, origin.merged if merged else None, firsts)


def from_hub(
    hub: Mapping[str, LazyTensor],
    target: Layout,
    sizes: Mapping[str, int],
    firsts: Mapping[str, int] | None = None,
) -> dict[str, LazyTensor]:
    """From the hub to a layout."""
    if target.is_hub:
        check_passing(hub, target, sizes, firsts or {})
        return dict(hub)
    return apply(hub, target, True, sizes, firsts=firsts)

"""An adapter's keys, put into the weights of a base: every key is used once, or it is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..errors import LayoutError
from ..graph.node import Node
from ..graph.rewrite import cast
from .config import AdapterConfig, parameter_name
from .kind import AdapterKind, Wrapped, find_end

N = TypeVar("N", bound=Node)
_BASE_LAYER = ".base_layer."  # X.base_layer.weight is X.weight, saved beside its LoRA


class Updates:
    """What an adapter changes in a base.

    Args:
        hub: the base, one tensor for each weight of a module.
        update: the adapter's tensors, in the same form.
        kinds: the kinds of which its modules may be.
        said: adapter_config.json.
        quantised: the base's quantisation, to be named where a weight is not there; "" for none.
    """

    def __init__(
        self,
        hub: Mapping[str, N],
        update: Mapping[str, N],
        kinds: Iterable[AdapterKind],
        said: AdapterConfig,
        quantised: str = "",
    ):
        self._hub, self._update, self._said, self._quantised = hub, update, said, quantised
        self._kinds = tuple(kinds)
        self._modules: dict[str, dict[str, str]] = {}  # weight of the base -> end -> key of the adapter
        self._whole: dict[str, str] = {}  # key of the base -> key of the adapter that takes its place
        self._left: list[str] = []
        self._reasons: set[str] = set()

    def made(self) -> dict[str, Node]:
        """The base's keys that change, each with its new node. Reads nothing."""
        self._sort()
        result: dict[str, Node] = {}
        for name, key in self._whole.items():
            result[name] = self._replaced(name, self._update[key])
        for weight, keys in self._modules.items():
            beside = self._whole.get(weight)
            if beside is not None and _BASE_LAYER not in beside:
                raise LayoutError(
                    f"{weight}: the adapter holds two updates of it ({', '.join([*keys.values(), beside])}); leave one "
                    "of them out"
                )
            kind = next((kind for kind in self._kinds if kind.takes(keys)), None)
            if kind is None or weight not in self._hub:
                self._left += keys.values()
                if kind is None:
                    held = " and ".join(sorted(keys))
                    self._reasons.add(f"{held} alone {'is' if len(keys) == 1 else 'are'} no whole update")
                continue
            node = result.get(weight, self._hub[weight])
            factors = {end: self._update[key] for end, key in keys.items()}
            result[weight] = kind.merge(Wrapped(weight, node, factors, self._said))
        if self._left:
            raise self._refusal()
        return result

    def _sort(self) -> None:
        """Each key to the weight it belongs to."""
        for key in self._update:
            name, end = parameter_name(key), find_end(key, self._kinds)
            if end is not None:
                weight = name.removesuffix("." + end) + ".weight"
                self._claim(self._modules.setdefault(weight, {}), end, key, weight)
                continue
            place = name.replace(_BASE_LAYER, ".") if name not in self._hub else name
            if place in self._hub:
                self._claim(self._whole, place, key, place)
            else:
                self._left.append(key)

    def _claim(self, table: dict[str, str], place: str, key: str, weight: str) -> None:
        if place in table:
            raise LayoutError(
                f"{weight}: the adapter holds two updates of it ({table[place]}, {key}); leave one of them out"
            )
        table[place] = key

    def _replaced(self, name: str, new: Node) -> Node:
        """A tensor trained as a whole (modules_to_save, biases) or saved beside its LoRA, in the dtype of the base."""
        old = self._hub[name]
        if old.dims != new.dims:
            raise LayoutError(
                f"{name}: the adapter replaces it with a tensor of shape {list(new.dims)}, the base has "
                f"{list(old.dims)}; a resized vocabulary has to be resized in the base first"
            )
        return cast(new, old.code)

    def _refusal(self) -> LayoutError:
        left = self._left
        ends = [(end, why) for kind in self._kinds for end, why in kind.ends.items() if why]
        reasons = self._reasons | {why for end, why in ends if any(key.endswith("." + end) for key in left)}
        if self._quantised:
            reasons.add(f"the base is quantised ({self._quantised}), so that its weights are not there to be added to")
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more ({len(left)} in all)" if len(left) > 5 else "")
        advice = (
            'decode the base first: dtype="bf16", --dtype bf16.' if self._quantised else "is this the adapter's base?"
        )
        return LayoutError(
            f"{shown}: no weight of the base to put {'it' if len(left) == 1 else 'them'} into"
            + "".join(f"; {why}" for why in sorted(reasons))
            + f"; {advice} Nothing of an adapter is left out in silence"
        )

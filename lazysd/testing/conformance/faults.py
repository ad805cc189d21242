"""What may be wrong with a checkpoint of a family, at the first, a middle and the last expert, projection and layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from ...layouts import Layout
from ...layouts.grouping import Table
from ...layouts.rule import End
from ...layouts.whole import is_of_experts, stack_of

Tensors = dict[str, torch.Tensor]
_NUMBER = re.compile(r"\.[0-9]+\.")
_WITH_NAME = re.compile(r"[^.]*\.[0-9]+\.")


@dataclass(frozen=True)
class Fault:
    """A state dict with one thing wrong."""

    name: str
    tensors: Tensors
    about: tuple[str, ...]  # an error has to name one of these
    refused: bool = True  # False: a part of a checkpoint, which converts to a part of the result


@dataclass(frozen=True)
class Place:
    """A key of an expert: the rule it is of, its layer, and its number where keys have one."""

    key: str
    end: End
    layer: str  # the key up to the layer's number
    number: int | None
    span: tuple[int, int] = (0, 0)  # of the number in the key

    def renumbered(self, text: str) -> str:
        """The key of another expert."""
        return self.key[: self.span[0]] + text + self.key[self.span[1] :]


def _layer(key: str) -> str:
    """The key up to the first number in it, or all of it."""
    found = _NUMBER.search(key)
    return key[: found.end()] if found else key


def places(tensors: Mapping[str, Any], layout: Layout, config: Mapping[str, Any] | None) -> list[Place]:
    """The keys of experts in a state dict of a layout, each with the rule that claims it."""
    ends = tuple(rule.ends(False) for rule in layout.bound(config).rules)
    table = Table(layout.name, ends, firsts=layout.config_firsts(config)).among(tensors)
    sizes, found = layout.config_sizes(config), []
    for key in tensors:
        claim = table.claims(key, sizes)
        if claim is None or not is_of_experts(end := ends[claim[0]]):
            continue
        counted = [axis for axis in end.side.keys if axis not in end.template.words]
        match = end.template.regex.fullmatch(key) if counted else None
        number, span = (int(claim[1][counted[0]]), match.span(counted[0])) if match else (None, (0, 0))
        found.append(Place(key, end, _layer(key), number, span))
    return found


def faults(
    tensors: Tensors, layout: Layout, config: Mapping[str, Any] | None, other: Mapping[str, torch.Tensor]
) -> list[Fault]:
    """Every fault there is of a state dict of a layout.

    Args:
        tensors: the state dict.
        layout: its layout.
        config: states the number of experts and their sizes.
        other: the same tensors in another layout, or nothing.
    """
    found = places(tensors, layout, config)
    layers = sorted({place.layer for place in found})
    return [
        *_of_numbers(tensors, found, layers),
        *_of_values(tensors, found),
        *_of_groups(tensors, found, layers),
        *_doubled(tensors, found, other),
    ]


def _named(place: Place) -> str:
    """What an error has to say: the layer's number and the word before it, which all layouts have."""
    found = _WITH_NAME.search(place.key)
    return found[0] if found else place.key


def _three(values: list[Any]) -> list[Any]:
    """The first, a middle and the last."""
    return [values[at] for at in sorted({0, len(values) // 2, len(values) - 1})] if values else []


def _without(tensors: Tensors, gone: Any) -> Tensors:
    lost = {place.key for place in gone}
    return {key: tensor for key, tensor in tensors.items() if key not in lost}


def _of_numbers(tensors: Tensors, found: list[Place], layers: list[Any]) -> Iterator[Fault]:
    """Experts that are missing, too many, or numbered in another way."""
    for layer, stack in product(layers, {stack_of(place.end): None for place in found}):
        here = [place for place in found if place.layer == layer and stack_of(place.end) == stack]
        here = [place for place in here if place.number is not None]
        numbers = sorted({place.number for place in here if place.number is not None})
        for number in _three(numbers) if len(numbers) > 1 else []:
            experts = [place for place in here if place.number == number]
            one = experts[number % len(experts)]
            about = (_named(one),)
            yield Fault("an expert missing", _without(tensors, experts), about)
            yield Fault("a tensor missing", _without(tensors, [one]), about)
            yield Fault("leading zero", {**tensors, one.renumbered(f"0{number}"): tensors[one.key]}, about)
            for more in (str(numbers[-1] + 1), "97", "1000000007"):
                added = {place.renumbered(more): tensors[place.key] for place in experts}
                if set(added) & set(tensors):  # another stack's, in the same list
                    continue
                yield Fault("an expert too many", {**tensors, **added}, about)


def _of_values(tensors: Tensors, found: list[Place]) -> Iterator[Fault]:
    """A tensor of another shape, dtype or name."""
    turns: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "transposed": lambda tensor: tensor.transpose(-1, -2).contiguous(),
        "one more row": lambda tensor: torch.cat([tensor, tensor[:1]]),
        "one less column": lambda tensor: tensor[..., :-1].clone(),
        "half": lambda tensor: tensor[: tensor.shape[0] // 2].clone(),
    }
    for place in _three(found):
        tensor = tensors[place.key]
        for name, turn in turns.items():
            if tensor.ndim > 1 and (turned := turn(tensor)).shape != tensor.shape:
                yield Fault(name, {**tensors, place.key: turned}, (_named(place),))
        siblings = [one for one in found if one.end.rule == place.end.rule and one.layer == place.layer]
        if len(siblings) > 1:
            yield Fault("another dtype", {**tensors, place.key: tensor.double()}, (_named(place),))
        renamed = {key + "_x" if key == place.key else key: value for key, value in tensors.items()}
        if place.number is not None:
            yield Fault("renamed", renamed, (_named(place),))
            beside = place.key.rpartition(".")[0] + ".zero_point"
            yield Fault("a stranger beside it", {**tensors, beside: tensor}, (_named(place),))


def _of_groups(tensors: Tensors, found: list[Place], layers: list[Any]) -> Iterator[Fault]:
    """A projection that one layer lacks, fewer experts in stacks, tensors that are all transposed, a layer missing."""
    for layer in _three(layers):
        here = [place for place in found if place.layer == layer]
        if len(layers) > 1:
            yield Fault("a layer missing", _without(tensors, here), (), refused=False)
        for rule in {place.end.rule: None for place in here}:
            group = [place for place in here if place.end.rule == rule]
            elsewhere = any(place.end.rule == rule and place.layer != layer for place in found)
            if len(group) < len(here) and elsewhere and ".bias" not in rule.hf:
                yield Fault("a projection missing", _without(tensors, group), tuple({_named(place) for place in here}))
            stacked = [place for place in group if place.number is None and tensors[place.key].shape[0] > 1]
            if stacked and str(rule.ends(False).side).startswith("e"):
                fewer = {place.key: tensors[place.key][:-1].clone() for place in stacked}
                yield Fault("fewer experts in a stack", {**tensors, **fewer}, (_named(stacked[0]),))


def _doubled(tensors: Tensors, found: list[Place], other: Mapping[str, torch.Tensor]) -> Iterator[Fault]:
    """The same experts in two forms side by side."""
    added = {key: tensor for key, tensor in other.items() if key not in tensors and ".experts." in key}
    if added and found:
        for keys in ([next(iter(added))], list(added)):
            about = tuple({_named(place) for place in found} | set(added))
            yield Fault("doubled in another form", {**tensors, **{key: added[key] for key in keys}}, about)

"""Layers that are unlike the others: what a checkpoint's keys say about its own regularity. Reads no tensor data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from ..graph.node import Node
from ..stores.strict_json import printable
from .text import ranges

_LAYER = re.compile(
    r"(?P<stack>(?:.*?\.)?(?:layers|h|blocks|block|layer))\.(?P<number>0|[1-9]\d{0,8})\.(?P<rest>.+)", re.ASCII
)
_EXPERT = re.compile(r"(?P<experts>.*experts)\.(?P<number>0|[1-9]\d{0,8})(?:\..*)?", re.ASCII)
MAX_NAMES = 4  # of what a layer has or lacks, in a sentence
MAX_SENTENCES = 6

Held = frozenset[tuple[str, str]]  # (key below the layer, dtype and shape)


def irregular_layers(tensors: Mapping[str, Node]) -> list[str]:
    """A sentence for each group of layers that hold other tensors than most, e.g. "layer 7 lacks mlp.experts.3".

    Layers of one stack ("model.layers") are compared with the kind that most of them are. Nothing is said of a stack
    in which no kind is more common than the others.
    """
    stacks: dict[str, dict[int, set[tuple[str, str]]]] = {}
    for key, node in tensors.items():
        if found := _LAYER.fullmatch(key):
            entry = (found["rest"], f"{node.code}{list(node.dims)}")
            stacks.setdefault(found["stack"], {}).setdefault(int(found["number"]), set()).add(entry)
    said: list[str] = []
    for stack, layers in stacks.items():
        kinds: dict[Held, list[int]] = {}
        for number, held in layers.items():
            kinds.setdefault(frozenset(held), []).append(number)
        common = sorted(kinds, key=lambda kind: len(kinds[kind]), reverse=True)
        if len(common) > 1 and len(kinds[common[0]]) > len(kinds[common[1]]):
            name = "" if len(stacks) == 1 else f" of {printable(stack)}"
            said += (_sentence(kinds[kind], name, kind, common[0]) for kind in common[1:])
        for low, high in pairwise(sorted(layers)):
            if high > low + 1:
                gap = f"{low + 1}" if high == low + 2 else f"{low + 1}-{high - 1}"
                said.append(f"{printable(stack)} has no layer {gap}")
    more = [f"and {len(said) - MAX_SENTENCES} more irregular layers"] if len(said) > MAX_SENTENCES else []
    return said[:MAX_SENTENCES] + more


def _sentence(numbers: list[int], name: str, here: Held, usual: Held) -> str:
    names, usually = {key for key, _ in here}, {key for key, _ in usual}
    other = sorted(key for key, kind in here - usual if key in usually)
    parts = [
        *([f"lack{'s' if len(numbers) == 1 else ''} {_listed(usually - names)}"] if usually - names else []),
        *([f"{'has' if len(numbers) == 1 else 'have'} {_listed(names - usually)} beside"] if names - usually else []),
        *([f"{'has' if len(numbers) == 1 else 'have'} {_listed(other)} of another dtype or shape"] if other else []),
    ]
    return f"layer{'s' if len(numbers) > 1 else ''} {ranges(numbers)}{name} {', '.join(parts)}"


def _listed(keys: Iterable[str]) -> str:
    """Names for a sentence; all tensors of one expert are that expert, several experts a range."""
    found = [printable(name) for name in _merged(sorted(keys))]
    more = f" and {len(found) - MAX_NAMES} more" if len(found) > MAX_NAMES else ""
    return ", ".join(found[:MAX_NAMES]) + more


def _merged(keys: list[str]) -> Iterator[str]:
    experts: dict[str, Counter[int]] = {}
    others = []
    for key in keys:
        if found := _EXPERT.fullmatch(key):
            experts.setdefault(found["experts"], Counter())[int(found["number"])] += 1
        else:
            others.append(key)
    for name, counts in experts.items():
        numbers = sorted(counts)
        yield f"{name}.{ranges(numbers)}" if len(numbers) == 1 else f"{name}.{{{ranges(numbers)}}}"
    yield from others

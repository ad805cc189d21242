"""AdapterKind: what makes one kind of adapter, and the door through which kinds come in.

A kind is one file in `peft/kinds/` with a `KIND` (or `KINDS`), found by scanning. tests/test_peft_kinds.py asks of each
what is written here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, Protocol

from ..doors import modules_of
from ..errors import LayoutError
from ..graph.node import Node
from .config import CONFIG, AdapterConfig

MERGEABLE = ("F16", "BF16", "F32", "F64")


class Wrapped(NamedTuple):
    """One weight of the base with the factors that an adapter has for it."""

    weight: str  # its key in the base
    node: Node
    factors: Mapping[str, Node]  # end of the adapter's key, "lora_A.weight" -> tensor
    said: AdapterConfig

    @property
    def module(self) -> str:
        """The module's name, by which adapter_config.json knows it."""
        return self.weight.removesuffix(".weight")


class AdapterKind(Protocol):
    """One kind of adapter."""

    @property
    def name(self) -> str:
        """As people call it."""

    @property
    def peft_type(self) -> str:
        """As adapter_config.json calls it."""

    @property
    def ends(self) -> Mapping[str, str]:
        """End of a key -> why it is not merged, or "" for a factor."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Text in a key that no other type of adapter has."""

    def takes(self, ends: Collection[str]) -> bool:
        """Whether these ends, all that an adapter holds for one module, are an update of this kind."""

    def refuses(self, said: AdapterConfig) -> list[str]:
        """Settings of adapter_config.json under which an update is something else than merge() computes."""

    def merge(self, wrapped: Wrapped) -> Node:
        """The weight with the update in it, as a node; reads nothing. Raises LayoutError where the parts do not fit."""

    def summary(self, said: AdapterConfig) -> dict[str, Any]:
        """What sets it apart, for `lazysd inspect`: its name as "kind", and settings of its own."""


@dataclass(frozen=True)
class Unmerged:
    """A kind that is looked at, compared and copied, and merged by PEFT alone."""

    name: str
    peft_type: str
    marks: tuple[str, ...] = ()
    ends: Mapping[str, str] = field(default_factory=dict)

    def takes(self, ends: Collection[str]) -> bool:
        return False

    def refuses(self, said: AdapterConfig) -> list[str]:
        return []

    @property
    def why(self) -> str:
        """Why it is not merged."""
        return (
            f"this is an adapter of kind {self.name} (peft_type {self.peft_type}), which lazysd does not merge; merge "
            "it with PEFT (merge_and_unload)"
        )

    def merge(self, wrapped: Wrapped) -> Node:
        raise LayoutError(self.why)

    def summary(self, said: AdapterConfig) -> dict[str, Any]:
        return {"kind": self.name}


@cache
def all_kinds() -> tuple[AdapterKind, ...]:
    """Every kind there is, by name of its file."""
    from . import kinds

    found: list[AdapterKind] = []
    for module in modules_of(kinds.__name__):
        found += getattr(module, "KINDS", None) or [module.KIND]
    return tuple(found)


def kinds_of(said: AdapterConfig, keys: Iterable[str]) -> tuple[AdapterKind, ...]:
    """The kinds an adapter may consist of: those of its peft_type, or of the marks in its keys; () where nothing shows.

    Raises LayoutError where the two contradict each other.
    """
    marked = _marked(keys)
    stated = said.values.get("peft_type")
    if stated is None:
        return marked
    known: tuple[AdapterKind, ...] = tuple(kind for kind in all_kinds() if kind.peft_type == stated)
    if not known:
        known = (Unmerged(str(stated), str(stated)),)
    if marked and not {kind.peft_type for kind in marked} & {kind.peft_type for kind in known if kind.marks}:
        if not any(kind.marks for kind in known):
            return known  # a type without marks of its own may share another's keys
        raise LayoutError(
            f"{CONFIG} says peft_type {stated}, but the keys are those of {marked[0].name}; correct the wrong one"
        )
    return known


def _marked(keys: Iterable[str]) -> tuple[AdapterKind, ...]:
    marks = {mark: kind.peft_type for kind in all_kinds() for mark in kind.marks}
    seen = {peft_type for key in keys for mark, peft_type in marks.items() if mark in key}
    types = sorted(seen, key=lambda name: name == "LORA")  # AdaLoRA and others have lora_A beside marks of their own
    return tuple(kind for kind in all_kinds() if types and kind.peft_type == types[0])


def find_end(key: str, kinds: Iterable[AdapterKind]) -> str | None:
    """The end that makes a key one of a kind's factors, the longest one."""
    ends = [end for kind in kinds for end in kind.ends if key.endswith("." + end)]
    return max(ends, key=len, default=None)

"""What a model family's table and a target program's say. A layout is family x dialect, derived in derive.py.

Axes have one letter everywhere: `e` expert, `g` gate or up, `i` the expert's intermediate size, `h` the hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..arguments import checked
from .rule import Layout, Rule
from .sizes import NUM_EXPERTS

# kind of tensor -> (key below the experts' module, axes). Kinds: "gate_up", "down", "gate_up_bias", "down_bias".
# In a key, {g} stands for gate's and up's words, {down} for down's.
Form = Mapping[str, tuple[str, str]]

PER_EXPERT: Form = {
    "gate_up": ("{e}.{g}.weight", "[e g] i h"),
    "down": ("{e}.{down}.weight", "[e] h i"),
    "gate_up_bias": ("{e}.{g}.bias", "[e g] i"),
    "down_bias": ("{e}.{down}.bias", "[e] h"),
}
FUSED: Form = {
    "gate_up": ("gate_up_proj", "e (g i) h"),
    "down": ("down_proj", "e h i"),
    "gate_up_bias": ("gate_up_proj_bias", "e (g i)"),
    "down_bias": ("down_proj_bias", "e h"),
}
TRANSPOSED: Form = {**FUSED, "gate_up": ("gate_up_proj", "e h (g i)"), "down": ("down_proj", "e i h")}
INTERLEAVED: Form = {
    **TRANSPOSED,
    "gate_up": ("gate_up_proj", "e h (i g)"),
    "gate_up_bias": ("gate_up_proj_bias", "e (i g)"),
}

# Key template on disk, in the dialect, and axes if values move. A Rule claims its neighbourhood, and a layout is
# recognised by it; other renames are bystanders.
Rename = tuple[str, str] | tuple[str, str, str] | Rule


@checked
@dataclass(frozen=True)
class Experts:
    """One stack of experts in a family's layers, as it lies on disk."""

    at: str = "{prefix}layers.{layer}.mlp.experts."  # key template up to the experts' module, with its last dot
    gate: str | None = "gate_proj"  # words of the projections on disk; no gate: experts are not gated
    up: str = "up_proj"
    down: str = "down_proj"
    disk: Form = field(default_factory=lambda: PER_EXPERT)  # the form of the files, dialect "hf"
    bias: bool = False  # whether experts have biases
    num: tuple[str, ...] = NUM_EXPERTS  # names of the number of experts in config.json
    hidden: tuple[str, ...] = ("hidden_size",)
    inner: tuple[str, ...] = ("moe_intermediate_size",)
    num_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # kinds that count their experts otherwise
    first: tuple[str, ...] = ()  # names of the number of the first expert, where it is not 0
    config: str = ""  # sub-config with the sizes; "": the outermost that states a number of experts

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of tensors an expert has."""
        return ("gate_up", "down", *(("gate_up_bias", "down_bias") if self.bias else ()))


@checked
@dataclass(frozen=True)
class Speech:
    """What a dialect makes of a family, where it differs from the dialect's own table."""

    at: str | tuple[str, ...] | None = (
        None  # the experts' module; None: as the dialect has it, or else where it is on disk
    )
    form: Form | tuple[Form | None, ...] | None = None  # None: the dialect's; a tuple has one for each stack of experts
    renames: tuple[Rename, ...] | None = None  # of other keys; None: the dialect's
    prefix: str = "model."  # what {prefix} is on disk, where `at` has none
    refuses: Mapping[str, str] = field(default_factory=dict)  # as a family's, in this dialect
    description: str = ""
    source: str = ""


@checked
@dataclass(frozen=True)
class Family:
    """A model family: how its experts lie on disk, and what each program calls its tensors.

    One file in lazysd/families/ holds it as FAMILY. `model_type` of config.json chooses the family.
    """

    name: str
    model_types: tuple[str, ...]
    experts: Experts | tuple[Experts, ...] = ()
    speaks: Mapping[str, Speech | str] = field(
        default_factory=dict
    )  # dialect -> what it calls things, or why it is none
    dense: bool = False  # no experts: q_proj, k_proj, v_proj and gate_proj, up_proj of each layer, as Llama has them
    apart: tuple[str, ...] = ()  # key prefixes ("mtp.") whose experts every dialect leaves as they are on disk
    refuses: Mapping[str, str] = field(default_factory=dict)  # end of a key, or key template -> why it is not carried
    has: tuple[str, ...] = ()  # ends of keys that every checkpoint of the family has, and others lack
    lacks: tuple[
        str, ...
    ] = ()  # ends of keys that no checkpoint of the family has; both count where no model_type does
    sizes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # further axes -> names in config.json
    source: str = ""  # the program and version that the table was compared with

    @property
    def stacks(self) -> tuple[Experts, ...]:
        """Every stack of experts."""
        return self.experts if isinstance(self.experts, tuple) else (self.experts,)


@checked
@dataclass(frozen=True)
class Dialect:
    """A target program: where it wants each expert's gate, up and down. One file in lazysd/dialects/, as DIALECT."""

    name: str
    description: str
    form: Form | None  # None: as the family's files have it
    at: str | None = None  # the experts' module; None: where it is on disk
    renames: tuple[Rename, ...] = ()  # of other keys, for families that do not say otherwise
    dense: tuple[Rename, ...] = ()  # of a dense family; none: the dialect has no form for one
    refuses: Mapping[str, str] = field(default_factory=dict)  # as a family's, for families with experts
    everywhere: bool = True  # whether a family that does not mention the dialect has it
    unless: str = ""  # why not, where a family does not mention it
    sizes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # axes of its renames -> names in config.json
    source: str = ""
    order: int = 100  # where it stands in lists, the lowest first, equals by name
    aliases: tuple[str, ...] = ()  # other names
    complete: Callable[[Layout, Family], Layout] | None = None  # what other rooms add; a LayoutError says why not

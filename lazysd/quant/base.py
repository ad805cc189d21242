"""What a scheme is: how one few-bit format names its tensors, decodes them, and encodes weights.

A scheme is one file of this folder with a module-level `SCHEME`. It works on nodes, and reads nothing: the ops that it
builds say which codes and scales a slice needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

from ..errors import LayoutError
from ..graph.boxes import Dims
from ..graph.node import Node
from ..graph.ops import Take
from ..graph.rewrite import build

Parts = Mapping[str, Node]  # role ("codes", "scale", …) -> tensor
Settings = Mapping[str, Any]  # what quantization_config says; empty where there is none


@dataclass(frozen=True, slots=True)
class Form:
    """How a scheme names the tensors of one weight: what follows a shared beginning."""

    weight: str  # of the plain weight, ".weight"
    required: Mapping[str, str]  # role -> what follows; "codes" is one of them
    optional: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    anchor: str = "scale"  # the role whose name tells that this may be a quantised weight
    common: bool = False  # whether the anchor's name is also used for other things
    fused: bool = False  # a second way to name them, below a group of experts: where it fits in part, it is none

    @property
    def suffixes(self) -> dict[str, str]:
        """Every role and what its name ends in."""
        return {**self.required, **self.optional}


def and_fused(form: Form, short: bool = True) -> tuple[Form, ...]:
    """A form whose names begin with ".weight", and what they are called below a fused group.

    That is `w13_weight_scale` and `w13_input_scale` beside `w13_weight`, as vLLM has it, and beside `gate_up_proj`
    `gate_up_proj_scale`, or, where not `short`, `gate_up_proj_weight_scale` (the other is read too).

    Source: transformers 5.23, integrations/finegrained_fp8.py (`gate_up_proj_scale_inv`); TensorRT-LLM 1.0, which
    reads `gate_up_proj_weight_scale_2` of NVFP4 experts of Llama 4 and gpt-oss.
    """

    def below(end: str) -> str:
        return "_" + end.removeprefix(".")

    def long(end: str) -> str:
        return "" if end == ".weight" else below(end)

    def shortened(end: str) -> str:
        return end.removeprefix(".weight") if end.startswith(".weight") else below(end)

    bare = (("", shortened),) if short else (("", long), ("", shortened))
    return form, *(
        Form(
            weight,
            {role: spelt(end) for role, end in form.required.items()},
            {role: spelt(end) for role, end in form.optional.items()},
            form.anchor,
            fused=True,
        )
        for weight, spelt in (("_weight", below), *bare)
    )


@dataclass(frozen=True, slots=True)
class Weight:
    """One quantised weight of a checkpoint."""

    key: str  # of the plain weight it stands for
    scheme: Scheme
    parts: Mapping[str, str]  # role -> key of the tensor

    def nodes(self, tensors: Mapping[str, Node]) -> dict[str, Node]:
        """The tensors by their roles."""
        return {role: tensors[key] for role, key in self.parts.items()}

    def laid(self, tensors: Mapping[str, Node]) -> dict[str, Node]:
        """The tensors by their roles, in the shapes that rules move."""
        return self.scheme.laid(self.nodes(tensors))


class Scheme(ABC):
    """A few-bit format."""

    name: ClassVar[str]  # what people call it, "fp8-blocks"
    methods: ClassVar[tuple[str, ...]]  # values of quant_method that may mean it
    forms: ClassVar[tuple[Form, ...]]
    lists: ClassVar[str] = "modules_to_not_convert"  # where its quantization_config lists what stays plain
    keeps_rows: ClassVar[bool] = False  # whether rows stay rows, under other names, where a layout transposes weights
    of_stacks: ClassVar[bool] = False  # whether programs read it of experts that are stacked, and of nothing else
    rows_last: ClassVar[bool] = False  # whether codes have the rows of the decoded weight, before it is turned, last
    wants: ClassVar[str]  # what the codes have to be, for errors: "FP8"

    @abstractmethod
    def fits(self, parts: Parts, settings: Settings) -> bool:
        """Whether tensors named as a form of this scheme can be its: dtypes and shapes, not values."""

    @abstractmethod
    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        """The plain weight, of dtype `code`. ValueError where the shapes do not fit."""

    def dims(self, parts: Parts, settings: Settings) -> tuple[int, ...]:
        """The shape of the plain weight."""
        return self.decode(parts, "BF16", settings).dims

    def encode(self, node: Node, settings: Settings) -> dict[str, Node]:
        """The tensors that stand for a plain weight, by their roles. LayoutError where lazysd only decodes."""
        self.refuse("write")

    def encode_again(self, node: Node, parts: Parts, settings: Settings) -> dict[str, Node]:
        """The tensors that stand for a weight that has changed, of the form of those it had; others stay."""
        return self.encode(node, settings)

    numbers: ClassVar[tuple[str, ...]] = ("global_scale", "input_scale", "input_global_scale", "activation_scale")

    def is_number(self, role: str, parts: Parts) -> bool:
        """Whether a part is one number for the whole weight; in a fused group, one for each expert and part of it."""
        return role in self.numbers

    def number_dims(self, settings: Settings) -> tuple[int, ...]:
        """The shape of such a number beside the weight that it belongs to."""
        return (1,)

    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        """The rows and columns that share a scale, as stored; None where a weight cannot be cut and put together."""
        return None

    def turns(self, parts: Parts, settings: Settings) -> bool:
        """Whether codes and scales may both be transposed, and mean the same under the same quantization_config."""
        return False

    def laid(self, parts: Parts) -> dict[str, Node]:
        """The parts with as many axes as the plain weight, rows and columns where it has them, for rules to move."""
        return dict(parts)

    def unlaid(self, parts: Parts) -> dict[str, Node]:
        """laid(), undone."""
        return dict(parts)

    def carried_as(self, key: str, turned: bool) -> tuple[Scheme, Form] | None:
        """The scheme, and its names, in which the same codes stand for a weight that is called `key` now.

        `turned`: rows and columns of the plain weight have changed places. None where nothing has names for it.
        """
        form = next((form for form in self.forms if key.endswith(form.weight)), None)
        return None if form is None else (self, form)

    def take_over(self, other: Scheme, parts: Parts, settings: Settings) -> dict[str, Node] | None:
        """The parts, in this scheme, of a weight that another scheme stores, with the very same values.

        None where the two have nothing in common; LayoutError where they have, but not every value can be held.
        """
        return None

    def written_config(self, settings: Settings) -> dict[str, Any]:
        """The quantization_config of a checkpoint whose weights were encoded with these settings."""
        self.refuse("write")

    def with_activations(self, config: dict[str, Any]) -> dict[str, Any]:
        """written_config() of weights beside which scales of activations stand."""
        return config

    def refuse(self, verb: str) -> NoReturn:
        step = f"{verb} them with the tool that {'reads' if verb == 'write' else 'wrote'} them"
        raise LayoutError(f"lazysd does not {verb} {self.name} weights; {step}")


def method_of(settings: Settings) -> str | None:
    """quant_method, as text; None where nothing is said."""
    said = settings.get("quant_method")
    return None if said is None else str(getattr(said, "value", said))


def expect(parts: Parts, role: str, *codes: str) -> bool:
    """Whether a part has one of these dtypes."""
    return parts[role].code in codes


def label(node: Node) -> str:
    """A tensor for people: U8[4, 16]."""
    return f"{node.code}{list(node.dims)}"


def longer(dims: Dims) -> Dims:
    """The sizes other than 1."""
    return tuple(size for size in dims if size != 1)


def repeated(node: Any, axis: int, count: int) -> Any:
    """An axis of length 1, `count` times."""
    return build(Take(axis, (0,) * count), (node,)) if count != 1 else node


FLOATS = ("F16", "BF16", "F32", "F64")
CODES = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "U8", "I8", "I32")  # no plain weight has such values
FP8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")

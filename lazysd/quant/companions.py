"""What stands beside codes, in the shape that a layout's rules can move, and back in the shape that is stored."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

from ..errors import LayoutError
from ..graph.boxes import Dims, full_box
from ..graph.compute import Agree
from ..graph.rewrite import build, reshape, slice_
from ..tensor.lazy import LazyTensor
from .base import Weight, label, longer, repeated

ADVICE = "decode the weights first: --dtype bf16, lazysd.quantization.dequantize"


class Kind(NamedTuple):
    """What weights of one group have to share: how they are quantised, and how each part of them is stored."""

    scheme: str
    parts: tuple[tuple[str, str], ...]  # (role, how it is stored), "codes" first

    @property
    def companions(self) -> dict[str, str]:
        """Role -> how it is stored, of everything but the codes."""
        return dict(self.parts[1:])


def kind_of(weight: Weight, tensors: Mapping[str, Any]) -> Kind:
    """The kind of a weight. Reads nothing.

    A part is stored "full" (with as many axes as the codes), as "rows" (without the last axis), as "number" (one for
    the weight; in a fused group one for each expert and part of it), or as the "shape" of the plain weight.
    """
    nodes = weight.laid(tensors)
    roles = sorted(role for role in nodes if role != "codes")
    return Kind(weight.scheme.name, (("codes", "full"), *((role, _stored(weight, role, nodes)) for role in roles)))


def _stored(weight: Weight, role: str, nodes: Mapping[str, Any]) -> str:
    if role == "shape":
        return "shape"
    if weight.scheme.is_number(role, nodes):
        return "number"
    return "rows" if nodes[role].dims == nodes["codes"].dims[:-1] else "full"


def as_matrix(weight: Weight, role: str, stored: str, turned: bool, parts: int, nodes: Mapping[str, Any]) -> LazyTensor:
    """A part of a weight with as many axes as its codes.

    Args:
        weight, role, stored: as kind_of() says.
        turned: whether the codes have columns before rows.
        parts: how many weights of the hub stand side by side in its rows.
        nodes: its parts by their roles, as laid() has them.

    Raises:
        LayoutError: naming the part, where its shape says of no row which it belongs to.
    """
    key, codes = weight.parts[role], nodes["codes"]
    made: LazyTensor = nodes[role]
    node = made
    if stored == "number":
        made = _number(node, codes, turned, parts, key)
    elif stored == "rows":
        made = reshape(node, (*node.dims, 1))
    elif stored == "shape" and codes.ndim == 2:
        made = reshape(node, (max(node.numel() // 2, 1), 2))  # one row for each part, as fc1 of Megatron has two
    if made.ndim != codes.ndim:
        raise LayoutError(f"{key} is {label(node)} beside codes {label(codes)}, and which rows it is of is not said")
    return made


def _number(node: LazyTensor, codes: LazyTensor, turned: bool, parts: int, key: str) -> LazyTensor:
    """One number for each part of each matrix: what several share is theirs, one each."""
    lead = codes.dims[:-2]
    num = next((n for n in (parts, 1) if longer(node.dims) == longer((*lead, n))), None)
    if num is None and node.numel() == 1:
        num, node = 1, repeated(reshape(node, (1,)), 0, prod(lead))  # one for all matrices
    if num is None:
        each = f"not one number for each of the {prod(lead)} experts" if lead else "where such a number is [] or [1]"
        raise LayoutError(f"{key} is {label(node)}, {each}")
    made: LazyTensor = reshape(node, (*lead, 1, num) if turned else (*lead, num, 1))
    return made if num == parts else repeated(made, len(lead) + turned, parts)


def as_stored(node: LazyTensor, codes: LazyTensor, stored: str, dims: Dims, joins: str | None) -> LazyTensor:
    """A converted part as it is stored beside converted codes.

    Args:
        node, codes, stored: the part, the codes, how it is stored.
        dims: the shape of one number by itself.
        joins: what it is called, of a number that weights side by side have to share; equal ones are one.
    """
    if stored == "number":
        axis = next((axis for axis in (-2, -1) if node.dims[axis] > 1), -1)
        if joins is not None and node.dims[axis] > 1:
            node = _joined(node, node.ndim + axis, joins)
        if codes.ndim == 2:
            return reshape(node, dims if node.numel() == 1 else (node.numel(),))
        return reshape(node, node.dims[:1] + longer(node.dims[1:]))
    if stored == "rows" and node.dims[-1] == 1:
        return reshape(node, node.dims[:-1])
    return reshape(node, (node.numel(),)) if stored == "shape" and codes.ndim == 2 and node.dims[0] == 1 else node


def _joined(node: LazyTensor, axis: int, name: str) -> LazyTensor:
    """One number for several parts, once it is known that theirs are the same bits."""
    box = full_box(node.dims)
    cut = [slice_(node, (*box[:axis], range(k, k + 1), *box[axis + 1 :])) for k in range(node.dims[axis])]
    hint = f"but weights side by side have one there; {ADVICE}"
    made: LazyTensor = build(Agree(tuple(f"part {k} of {name}" for k in range(len(cut))), hint), cut)
    return made

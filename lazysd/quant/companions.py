"""What stands beside codes, in the shape that a layout's rules can move, and back in the shape that is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import LayoutError
from ..graph.boxes import Dims
from ..graph.rewrite import reshape
from ..tensor.lazy import LazyTensor
from .base import Settings, Weight, label

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


def as_matrix(
    weight: Weight, role: str, stored: str, turned: bool, settings: Settings, nodes: Mapping[str, Any]
) -> LazyTensor:
    """A part of a weight with as many axes as its codes.

    Args:
        weight, role, stored: as kind_of() says.
        turned: whether the codes have columns before rows.
        settings: what quantization_config says.
        nodes: its parts by their roles, as laid() has them.

    Raises:
        LayoutError: naming the part, where its shape says of no row which it belongs to.
    """
    key, codes = weight.parts[role], nodes["codes"]
    made: LazyTensor = nodes[role]
    node = made
    if stored == "number":
        made = _number(node, codes, turned, weight.scheme.number_dims(settings), key)
    elif stored == "rows":
        made = reshape(node, (*node.dims, 1))
    elif stored == "shape" and codes.ndim == 2:
        made = reshape(node, (max(node.numel() // 2, 1), 2))  # one row for each part, as fc1 of Megatron has two
    if made.ndim != codes.ndim:
        raise LayoutError(f"{key} is {label(node)} beside codes {label(codes)}, and which rows it is of is not said")
    return made


def _number(node: LazyTensor, codes: LazyTensor, turned: bool, dims: Dims, key: str) -> LazyTensor:
    if codes.ndim == 2:
        if node.dims != dims and not (node.ndim == 1 and node.dims[0] > 1):
            raise LayoutError(f"{key} is {label(node)}, where such a number is {list(dims)}; it would come back so")
        return reshape(node, (1, node.numel()) if turned else (node.numel(), 1))
    if node.ndim not in (1, 2) or node.dims[0] != codes.dims[0]:
        raise LayoutError(f"{key} is {label(node)}, not one number for each of the {codes.dims[0]} experts")
    parts = node.dims[1] if node.ndim == 2 else 1
    return reshape(node, (node.dims[0], 1, parts) if turned else (node.dims[0], parts, 1))


def as_stored(node: LazyTensor, codes: LazyTensor, stored: str, dims: Dims) -> LazyTensor:
    """A converted part as it is stored beside converted codes. `dims` is the shape of one number by itself."""
    if stored == "number" and codes.ndim == 2:
        return reshape(node, dims if node.numel() == 1 else (node.numel(),))
    if stored == "number":
        return reshape(node, node.dims[:1] + tuple(size for size in node.dims[1:] if size != 1))
    if stored == "rows" and node.dims[-1] == 1:
        return reshape(node, node.dims[:-1])
    return reshape(node, (node.numel(),)) if stored == "shape" and codes.ndim == 2 and node.dims[0] == 1 else node

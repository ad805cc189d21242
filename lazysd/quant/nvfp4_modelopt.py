"""NVFP4 in ModelOpt's naming: `X.weight` (rows, columns/2), `X.weight_scale` (rows, columns/16), `X.weight_scale_2`.

A value is its code times the group's scale times weight_scale_2.

Source: NVIDIA Model-Optimizer, modelopt/torch/quantization/qtensor/nvfp4_tensor.py.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_float
from typing import Any, ClassVar

from ..errors import LayoutError
from ..graph.leaves import Full
from ..graph.node import Node
from ..graph.rewrite import build, concat, reshape, slice_
from .base import Form, Parts, Scheme, Settings, and_fused, expect
from .codes import E4M3_MAX, FP4_MAX, FP4_VALUES
from .fp4_encoding import Fp4Codes, Fp4Scale
from .nibbles import DecodeNibbles
from .nvfp4_values import from_mxfp4, reciprocal
from .reading import largest

GROUP = 16


class Nvfp4ModelOpt(Scheme):
    """FP4 codes, one E4M3 scale for 16 of them, and one F32 scale for all."""

    name = "nvfp4-modelopt"
    methods = ("modelopt", "nvfp4")
    lists = "ignore"
    wants = "U8"
    forms: ClassVar[tuple[Form, ...]] = and_fused(
        Form(
            ".weight",
            {"codes": ".weight", "scale": ".weight_scale", "global_scale": ".weight_scale_2"},
            {"input_scale": ".input_scale", "pre_quant_scale": ".pre_quant_scale"},
        ),
        short=False,
    )

    def fits(self, parts: Parts, settings: Settings) -> bool:
        return self.has_types(parts) and not is_transposed(parts)

    def has_types(self, parts: Parts) -> bool:
        """Whether codes and scales have the types of the format, in whichever order their axes stand."""
        return expect(parts, "codes", "U8") and expect(parts, "scale", "F8_E4M3")

    def carried_as(self, key: str, turned: bool) -> tuple[Scheme, Form] | None:
        from .nvfp4_transposed import SCHEME as ROWS_LAST

        return self.named(ROWS_LAST if turned else self, key)

    def named(self, scheme: Scheme, key: str) -> tuple[Scheme, Form] | None:
        """A scheme of these names, and those that it has for a key."""
        form = next((form for form in self.forms if key.endswith(form.weight)), None)
        return None if form is None else (scheme, form)

    def number_dims(self, settings: Settings) -> tuple[int, ...]:
        return ()

    def cell(self, parts: Parts, settings: Settings) -> tuple[int, int] | None:
        return 1, GROUP

    def decode(self, parts: Parts, code: str, settings: Settings) -> Node:
        if "pre_quant_scale" in parts:
            raise LayoutError(
                "its activations are scaled too (pre_quant_scale), so that a plain weight cannot stand alone"
            )
        return decoded(parts, code, divides=False)

    def encode(self, node: Node, settings: Settings) -> dict[str, Node]:
        total = global_scale(node)
        return {**encoded(node, total), "global_scale": constant(node, total, ())}

    def encode_again(self, node: Node, parts: Parts, settings: Settings) -> dict[str, Node]:
        return each_part(node, parts["global_scale"], lambda part: self.encode(part, settings))

    def take_over(self, other: Scheme, parts: Parts, settings: Settings) -> dict[str, Node] | None:
        if other.name == "nvfp4-compressed":
            made = {"codes": parts["codes"], "scale": parts["scale"]}
            made["global_scale"] = reshape(reciprocal(parts["global_scale"]), ())
            if "input_global_scale" in parts:
                made["input_scale"] = reshape(reciprocal(parts["input_global_scale"]), ())
            return made
        if other.name in ("mxfp4-compressed", "mxfp4-original", "mxfp4-vllm"):
            codes, scale, total = from_mxfp4(parts)
            return {"codes": codes, "scale": scale, "global_scale": constant(codes, total, ())}
        return None

    def written_config(self, settings: Settings) -> dict[str, Any]:
        return {"quant_method": "modelopt", "quant_algo": "NVFP4", **settings}


def is_transposed(parts: Parts) -> bool:
    """Whether codes are packed along the axis before the last."""
    codes, scale = parts["codes"].dims, parts["scale"].dims
    return len(codes) > 1 and scale == (*codes[:-2], 2 * codes[-2] // GROUP, codes[-1]) and bool(scale[-2])


def decoded(parts: Parts, code: str, divides: bool) -> Node:
    """The plain weight. A fused group may have a global scale for each of its parts: (experts, 2) for gate and up."""
    op = DecodeNibbles(FP4_VALUES, 2, GROUP, code, divides)
    codes, scale, total = parts["codes"], parts["scale"], parts["global_scale"]
    if codes.ndim != 3 or total.ndim != 2 or total.dims[1] == 1:
        return build(op, (codes, scale, total))
    num, rows = total.dims[1], codes.dims[1] // max(total.dims[1], 1)
    if total.dims[0] != codes.dims[0] or rows * num != codes.dims[1]:
        raise ValueError(f"global scales {list(total.dims)} do not fit the parts of codes {list(codes.dims)}")
    made = []
    for k in range(num):
        part = range(k * rows, (k + 1) * rows)
        cut = [slice_(node, (range(node.dims[0]), part, range(node.dims[2]))) for node in (codes, scale)]
        made.append(build(op, (*cut, slice_(total, (range(total.dims[0]), range(k, k + 1))))))
    return concat(tuple(made), 1)


def each_part(node: Node, total: Node, encode: Callable[[Node], dict[str, Node]]) -> dict[str, Node]:
    """A weight encoded so that it has global scales of the shape it had: of a fused group, one for each part."""
    if total.numel() == 1:
        made = encode(node)
        return {**made, "global_scale": reshape(made["global_scale"], total.dims)}
    experts, num = total.dims[0], total.dims[1] if total.ndim == 2 else 1
    if total.ndim > 2 or node.ndim != 3 or node.dims[0] != experts or node.dims[1] % num:
        raise ValueError(f"global scales {list(total.dims)} do not fit the parts of {list(node.dims)}")
    rows = node.dims[1] // num
    stack: list[dict[str, Node]] = []
    for e in range(experts):
        cut = (
            slice_(node, (range(e, e + 1), range(k * rows, (k + 1) * rows), range(node.dims[2]))) for k in range(num)
        )
        parts = [encode(part) for part in cut]
        stack.append({role: concat(tuple(part[role] for part in parts), 1) for role in ("codes", "scale")})
        stack[-1]["global_scale"] = concat(tuple(reshape(part["global_scale"], (1, 1)) for part in parts), 1)
    joined = {role: concat(tuple(expert[role] for expert in stack), 0) for role in stack[0]}
    return {**joined, "global_scale": reshape(joined["global_scale"], total.dims)}


def global_scale(node: Node) -> float:
    """The F32 scale for all of a weight: its largest group gets the largest E4M3 scale. Reads the weight once."""
    most = largest(node)
    return c_float(max(most / (FP4_MAX * E4M3_MAX), 2.0**-126)).value if most else 1.0  # as F32 holds it


def encoded(node: Node, total: float) -> dict[str, Node]:
    """Codes and scales of groups under a global scale that is multiplied by."""
    return {"codes": build(Fp4Codes(GROUP, total), (node,)), "scale": build(Fp4Scale(GROUP, total), (node,))}


def constant(node: Node, value: float, dims: tuple[int, ...]) -> Node:
    """One F32 number as a tensor."""
    return node.like(Full(value), (), dims, "F32")


SCHEME = Nvfp4ModelOpt()

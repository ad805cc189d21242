"""LoRA: weight + scale * lora_B @ lora_A. Source: peft 0.21.2."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...errors import LayoutError
from ...graph.compute import AddMatmul
from ...graph.node import Node
from ...graph.ops import Permute
from ...graph.rewrite import build
from ..config import CONFIG, AdapterConfig
from ..kind import MERGEABLE, Wrapped

A, B = "lora_A.weight", "lora_B.weight"
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")  # stored transposed to the weight of an embedding
_BIAS = "a bias inside LoRA is not merged"
_SETTINGS = (
    *("fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config"),
    *("kasa_config", "velora_config", "monteclora_config", "layer_replication", "trainable_token_indices"),
    "megatron_config",
)
_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")  # they change the base weights as they start


class Lora:
    """Two factors, and nothing else."""

    name = "LoRA"
    peft_type = "LORA"
    ends: Mapping[str, str] = {A: "", B: "", **dict.fromkeys(EMBEDDING, ""), "lora_A.bias": _BIAS, "lora_B.bias": _BIAS}
    marks = (".lora_A", ".lora_B", ".lora_embedding_")

    def takes(self, ends: Collection[str]) -> bool:
        return set(ends) in ({A, B}, set(EMBEDDING))

    def refuses(self, said: AdapterConfig) -> list[str]:
        start = said.values.get("init_lora_weights")
        refused = [name for name in _SETTINGS if said.values.get(name)]
        if isinstance(start, str) and start.startswith(_STARTS):
            refused.append(f"init_lora_weights={start!r}")
        return refused

    def merge(self, wrapped: Wrapped) -> Node:
        if wrapped.said.values.get("use_dora"):
            raise LayoutError(
                f"{wrapped.module}: {CONFIG} sets use_dora, but there is no lora_magnitude_vector for it; is a tensor "
                "missing?"
            )
        left, right, scale = oriented(wrapped)
        try:
            return build(AddMatmul(scale), (wrapped.node, left, right))
        except ValueError as error:
            raise not_fitting(wrapped, error) from error

    def summary(self, said: AdapterConfig) -> dict[str, Any]:
        return {"kind": self.name}


def oriented(wrapped: Wrapped) -> tuple[Node, Node, float]:
    """(left, right, scale) so that left @ right has the shape of the weight: (out, in), of embeddings (in, out)."""
    node, module, said = wrapped.node, wrapped.module, wrapped.said
    if node.code not in MERGEABLE:
        raise LayoutError(f"{wrapped.weight} is quantised ({node.code}); dequantise the base before merging")
    embedding = EMBEDDING[0] in wrapped.factors
    first, second = (wrapped.factors[end] for end in (EMBEDDING if embedding else (A, B)))
    if first.code not in MERGEABLE or second.code not in MERGEABLE:
        raise LayoutError(
            f"{wrapped.weight}: LoRA factors {first.code} and {second.code} are no floating-point numbers"
        )
    if first.ndim != 2 or second.ndim != 2 or not first.dims[0]:
        raise LayoutError(f"{wrapped.weight}: LoRA factors {list(first.dims)} and {list(second.dims)} are no matrices")
    rank, alpha = first.dims[0], said.alpha(module)
    if alpha is None:
        raise LayoutError(
            f"{module}: no lora_alpha is known (no {CONFIG}?); state it: "
            'config={"lora_alpha": …}; the scale is lora_alpha / r'
        )
    if said.rank(module) not in (None, rank):
        raise LayoutError(f"{module}: its lora_A has rank {rank}, {CONFIG} says {said.rank(module)}")
    left, right = (build(Permute((1, 0)), (one,)) for one in (first, second)) if embedding else (second, first)
    return left, right, said.scale(rank, alpha)


def not_fitting(wrapped: Wrapped, error: ValueError) -> LayoutError:
    """The error for factors of other shapes or types than the weight needs."""
    return LayoutError(f"{wrapped.weight}: {error}; the adapter belongs to another base, or its layout is another")


KIND = Lora()

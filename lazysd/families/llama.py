"""Llama and what is laid out like it: no experts; q, k, v and gate, up are merged or split by other programs."""

from ..layouts.family import Family, Speech

FAMILY = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    dense=True,
    speaks={"megatron": Speech()},
    source="transformers 5.23, tiny models built and compared",
)

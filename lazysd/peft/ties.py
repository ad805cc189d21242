"""A head that is tied to an embedding, where an adapter changes the embedding alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ..errors import LayoutError
from .config import AdapterConfig, parameter_name

T = TypeVar("T")
HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")
_HEADED = ("model.", "", "model.language_model.")  # prefixes of an embedding beside which the head is called HEAD
_WITH_HEAD = ("CausalLM", "ConditionalGeneration")


def untied(
    hub: Mapping[str, T], changed: Iterable[str], said: AdapterConfig, config: Mapping[str, Any] | None
) -> dict[str, T]:
    """The head's old weight under its own key, where the base ties it to an embedding that changes; else nothing.

    The adapter was trained with the head as it was: modules_to_save copies the embedding, LoRA is added to what the
    embedding gives. (PEFT's merge of that LoRA changes the head as well, and so gives other logits than the adapter.)
    With `ensure_weight_tying` the head was trained along and follows.

    Raises LayoutError where the head's own key is not known.

    Source: peft 0.21.2, what merge_and_unload and save_pretrained leave for modules_to_save=["embed_tokens"].
    """
    embedding = next((key for key in changed if key.endswith(_EMBEDDINGS)), None)
    if embedding is None or any(key.endswith(HEAD) for key in hub):
        return {}
    if not _is_tied(config) or said.values.get("ensure_weight_tying"):
        return {}
    if embedding.removesuffix(_EMBEDDINGS[0]) not in _HEADED:
        raise LayoutError(
            f"{embedding} changes, and config.json ties the head to it, which the adapter was not trained for; the "
            "head's own key is not known for this model, so merge it with PEFT"
        )
    return {HEAD: hub[embedding]}


def headed(hub: Mapping[str, T], update: Iterable[str], config: Mapping[str, Any] | None) -> dict[str, T]:
    """The head under its own key, where the base ties it to an embedding and the adapter trains it; else nothing.

    The adapter's model adds to what the head gives, and leaves the embedding as it is. PEFT's merge adds to the weight
    that both share, twice where both are trained, and warns that its result is another model.

    Source: peft 0.21.2, logits before and after merge_and_unload.
    """
    if HEAD in hub or not _is_tied(config):
        return {}
    if not any(parameter_name(key).startswith(HEAD.removesuffix("weight")) for key in update):
        return {}
    embeddings = (start + _EMBEDDINGS[0] for start in _HEADED)
    return next(({HEAD: hub[key]} for key in embeddings if key in hub), {})


def untying(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with tie_word_embeddings false wherever it stands."""
    found = {**config, "tie_word_embeddings": False}
    nested = found.get("text_config")
    if isinstance(nested, Mapping) and "tie_word_embeddings" in nested:
        found["text_config"] = {**nested, "tie_word_embeddings": False}
    return found


def _is_tied(config: Mapping[str, Any] | None) -> bool:
    """What config.json says; where it says nothing, a model with a head and without its weight has it tied."""
    nested = (config or {}).get("text_config")
    for table in (config or {}, nested if isinstance(nested, Mapping) else {}):
        if table.get("tie_word_embeddings") is not None:
            return bool(table["tie_word_embeddings"])
    names = (config or {}).get("architectures")
    return isinstance(names, list) and any(part in str(name) for name in names for part in _WITH_HEAD)

"""merge(): a LoRA adapter put into its base, weight by weight: W + scale * B @ A, lazily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import layouts
from .checkpoint import Checkpoint
from .errors import LayoutError
from .graph.compute import AddMatmul
from .graph.ops import Permute
from .graph.rewrite import build, cast
from .layouts.adapter import FIELDS, AdapterConfig, parameter_name
from .layouts.converting import to_hub
from .tensor.lazy import LazyTensor

_FACTORS = {
    "lora_A.weight": "lora_B.weight",
    "lora_embedding_A": "lora_embedding_B",  # stored transposed to the weight of an embedding
}
_REFUSED_KEYS = {
    "lora_magnitude_vector": "DoRA rescales the merged weight by column norms, which merge does not compute",
    "lora_magnitude_vector.weight": "DoRA rescales the merged weight by column norms, which merge does not compute",
    "lora_A.bias": "a bias inside LoRA is not merged",
    "lora_B.bias": "a bias inside LoRA is not merged",
}
_REFUSED_SETTINGS = (
    *("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens"),
    *("arrow_config", "kasa_config", "layer_replication", "trainable_token_indices", "megatron_config"),
)
_REFUSED_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")  # they change the base weights as they start
_MERGEABLE = ("F16", "BF16", "F32", "F64")


def merge(
    base: Checkpoint,
    adapter: Checkpoint,
    to: str | None = None,
    source: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The base with the adapter put in: base + scale * lora_B @ lora_A for every wrapped weight, as a view.

    Nothing is read here. What is read later is the weight and its two factors, tile by tile; the sum is taken in
    float32 (float64 for a float64 base) and rounded once to the dtype of the base, to the same bits however it is cut
    into tiles. Rank, alpha, rank_pattern, alpha_pattern and use_rslora are honoured; modules_to_save and trained biases
    replace the base's. Plans label the result lossy.

    >>> import lazysd
    >>> from lazysd.merging import merge
    >>> base = lazysd.open("tests/golden/qwen3_moe_tiny")
    >>> merge(base, lazysd.open("tests/golden/peft_paramwrapper_r3"), to="nemo").plan().lossy
    ('merge of a LoRA update (40 tensors)',)

    Args:
        base: a checkpoint in any layout.
        adapter: LoRA in any layout, in memory or opened from a folder with adapter_config.json.
        to: layout of the result; the base's by default.
        source: layout of the adapter, where evidence is lacking.
        config: what JSON files would say, e.g. {"num_experts": 128} or {"r": 8, "lora_alpha": 16}.

    Raises:
        LayoutError: a key of the adapter that finds no weight, factors that do not fit, DoRA and other forms of LoRA
            that are more than a product of two factors.
    """
    if not any(".lora_" in key for key in adapter):
        raise LayoutError(
            f"cannot merge {adapter.path or 'the adapter'}: it holds no LoRA factor (lora_A, lora_B); is it a whole "
            "checkpoint rather than an adapter?"
        )
    said = (adapter.adapter or AdapterConfig()).stating(config)
    _check_settings(said)
    config = {**(base.config or {}), **{key: value for key, value in (config or {}).items() if key not in FIELDS}}
    hub: dict[str, LazyTensor] = dict(base)
    family = base.family
    origin = layouts.get(base.layout, family) if base.layout else None
    if origin is not None:
        hub = dict(to_hub(base, origin, origin.config_sizes(config)))
    stated = {"adapter": said, "layout": adapter.facts.layout, "family": adapter.facts.family}
    update = _per_expert(adapter.like(dict(adapter), **stated), hub, source, family, config)
    hub |= _updates(hub, update)
    files = tuple(dict.fromkeys((*base.files, *adapter.files)))
    merged = base.like(hub, files=files, layout="hf" if origin else None, family=family, config=config or None)
    target = to or base.layout
    if target is None or (origin is not None and layouts.get(target, family).is_hub):
        return merged
    return merged.convert(target, family=family, config=config)


def _per_expert(
    adapter: Checkpoint,
    hub: Mapping[str, LazyTensor],
    source: str | None,
    family: str | None,
    config: dict[str, Any],
) -> Checkpoint:
    """The adapter as one pair of factors for each weight of the hub."""
    if family is None:
        return adapter
    sizes = {key: value for key, value in config.items() if key not in FIELDS} | _sizes_of(hub, family)
    if (
        source is None
        and adapter.facts.layout is None
        and layouts.detect(adapter, sizes, family, adapter.adapter) is None
    ):
        return adapter
    return adapter.convert("peft-per-expert", source=source, family=family, config=sizes)


def _sizes_of(hub: Mapping[str, LazyTensor], family: str) -> dict[str, int]:
    """What config.json would say, from the base's own experts: shapes of weights that are there are no guess."""
    names = {"e": "num_experts", "i": "moe_intermediate_size", "h": "hidden_size"}
    found: dict[str, int] = {}
    for rule in layouts.get("hf", family).rules:
        template, side, *_ = rule.ends(True)
        for key, node in hub.items():
            if (fields := template.match(key)) is None:
                continue
            found["num_experts"] = max(found.get("num_experts", 0), int(fields["e"]) + 1)
            found |= {names[g[0]]: size for g, size in zip(side.groups, node.dims, strict=False) if g[0] in names}
    return found


def _check_settings(said: AdapterConfig) -> None:
    start = said.values.get("init_lora_weights")
    refused = [name for name in _REFUSED_SETTINGS if said.values.get(name)]
    if isinstance(start, str) and start.startswith(_REFUSED_STARTS):
        refused.append(f"init_lora_weights={start!r}")
    if refused:
        raise LayoutError(
            f"adapter_config.json sets {', '.join(refused)}: the update is then more than scale * B @ A, or meant for "
            "other base weights; merge it with PEFT"
        )


def _updates(hub: Mapping[str, LazyTensor], update: Checkpoint) -> dict[str, LazyTensor]:
    """The base's keys that change, each with its new node. Every key of the adapter is used, and once, or an error."""
    result: dict[str, LazyTensor] = {}
    used: dict[str, str] = {}  # key of the adapter -> weight of the base
    said = update.adapter or AdapterConfig()
    for key, node in update.items():
        name = parameter_name(key)
        module, factor = next(
            ((name.removesuffix("." + end), end) for end in _FACTORS if name.endswith("." + end)), ("", "")
        )
        weight, made = name, None
        if factor:
            other = key.removesuffix(factor) + _FACTORS[factor]
            weight = module + ".weight"
            if weight in hub and other in update:
                used[other] = weight
                made = _merged(weight, hub, node, update[other], said, "embedding" in factor)
        elif name in hub and not name.endswith(tuple(_REFUSED_KEYS)):
            made = _replaced(name, hub[name], node)
        if made is None:
            continue
        if weight in result:
            both = ", ".join([*(one for one, place in used.items() if place == weight), key])
            raise LayoutError(f"{weight}: the adapter holds two updates of it ({both}); leave one of them out")
        result[weight], used[key] = made, weight
    left = [key for key in update if key not in used]
    if left:
        reasons = {why for end, why in _REFUSED_KEYS.items() if any(key.endswith("." + end) for key in left)}
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more ({len(left)} in all)" if len(left) > 5 else "")
        raise LayoutError(
            f"{shown}: no weight of the base to put {'it' if len(left) == 1 else 'them'} into"
            + "".join(f"; {why}" for why in sorted(reasons))
            + "; is this the adapter's base? Nothing of an adapter is left out in silence"
        )
    return result


def _merged(
    weight: str,
    hub: Mapping[str, LazyTensor],
    first: LazyTensor,
    second: LazyTensor,
    said: AdapterConfig,
    embedding: bool,
) -> LazyTensor:
    """weight + scale * second @ first, (out, in) as linear layers store it; embeddings are (in, out)."""
    node, module = hub[weight], weight.removesuffix(".weight")
    if node.code not in _MERGEABLE or weight + "_scale_inv" in hub:
        raise LayoutError(f"{weight} is quantised ({node.code}); dequantise the base before merging")
    if first.ndim != 2 or second.ndim != 2 or not first.dims[0]:
        raise LayoutError(f"{weight}: LoRA factors {list(first.dims)} and {list(second.dims)} are no matrices")
    rank, alpha = first.dims[0], said.alpha(module)
    if alpha is None:
        raise LayoutError(
            f"{module}: no lora_alpha is known (no adapter_config.json?); state it: "
            'config={"lora_alpha": …}; the scale is lora_alpha / r'
        )
    if said.rank(module) not in (None, rank):
        raise LayoutError(f"{module}: its lora_A has rank {rank}, adapter_config.json says {said.rank(module)}")
    left, right = second, first
    if embedding:
        left, right = (build(Permute((1, 0)), (factor,)) for factor in (first, second))
    try:
        return build(AddMatmul(said.scale(rank, alpha)), (node, left, right))
    except ValueError as error:
        raise LayoutError(
            f"{weight}: {error}; the adapter belongs to another base, or its layout is another"
        ) from error


def _replaced(name: str, old: LazyTensor, new: LazyTensor) -> LazyTensor:
    """A tensor trained as a whole (modules_to_save, biases), in the dtype of the base."""
    if old.dims != new.dims:
        raise LayoutError(
            f"{name}: the adapter replaces it with a tensor of shape {list(new.dims)}, the base has {list(old.dims)}; "
            "a resized vocabulary has to be resized in the base first"
        )
    return cast(new, old.code)

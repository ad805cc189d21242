"""merge(): a LoRA adapter put into its base, weight by weight: W + scale * B @ A, lazily."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import layouts
from .arguments import checked
from .casting import cast_checkpoint
from .checkpoint import Checkpoint
from .errors import LayoutError
from .layouts.rule import Layout
from .peft.config import FIELDS, AdapterConfig, parameter_name
from .peft.converting import to_hub
from .peft.generation import detect
from .peft.kind import AdapterKind, Unmerged, kinds_of
from .peft.stacked import merged_in, wrappers
from .peft.tables import names_of
from .peft.ties import HEAD, headed, untied, untying
from .peft.updates import Updates
from .quant import again, travel
from .quant.base import method_of
from .quant.registry import find, settings_of
from .quantization import dequantize
from .tensor.lazy import LazyTensor


@checked
def merge(
    base: Checkpoint,
    adapter: Checkpoint,
    to: str | None = None,
    source: str | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    requantize: bool = False,
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
        dtype: of the result, "bf16"; what is quantised in the base is decoded to it first.
        requantize: of a quantised base, encode the weights that change again, by their own scheme, from the sum in
            float32; the others keep their codes. Scales for a whole tensor (NVFP4) are found by reading it once, here.

    Raises:
        LayoutError: a quantised weight that changes, with neither `dtype` nor `requantize`; a key of the adapter that
            finds no weight, factors that do not fit, forms of LoRA that are more than a product of two factors.
    """
    if dtype is not None:
        if requantize:
            raise ValueError("dtype= decodes what is quantised, requantize= keeps it so; give one of them")
        merged = merge(dequantize(base, dtype), adapter, to, source, config)
        return cast_checkpoint(merged, dtype)
    for checkpoint in (base, adapter):
        checkpoint.facts.check_whole("merge")
    load = travel.load(base, base.config, "F32")
    if not load.weights:
        return _merged(base, adapter, to, source, config)[0]
    with load.explained():
        plain = base.like(load.plain, layout=base.layout, family=base.family)
        merged, changed = _merged(plain, adapter, None, source, config, decoded=True)
    origin = layouts.get(base.layout, base.family).bound(base.config) if base.layout else None
    tensors, count = again.put_back(load, merged, again.touched(changed, origin), requantize)
    merged = merged.like(tensors)
    if count:
        merged = _saying(merged, f"LoRA merged, and {count} weights encoded again")
    return merged if to is None else merged.convert(to)


def _saying(merged: Checkpoint, text: str) -> Checkpoint:
    """The checkpoint with a sentence on what it has lost in config.json and among its remarks."""
    config = {**(merged.config or {}), "lazysd_lossy": text}
    files = {**merged.facts.json_files, "config.json": config}
    return merged.like(dict(merged), config=config, json_files=files, remarks=(*merged.remarks, text))


def _merged(
    base: Checkpoint,
    adapter: Checkpoint,
    to: str | None,
    source: str | None,
    config: Mapping[str, Any] | None,
    decoded: bool = False,
) -> tuple[Checkpoint, set[str]]:
    """(a plain base with the adapter put in, the keys of the hub that have changed). `decoded`: it was quantised."""
    said = (adapter.adapter or AdapterConfig()).stating(config)
    kinds = kinds_of(said, adapter)
    if not kinds:
        raise LayoutError(
            f"cannot merge {adapter.path or 'the adapter'}: it holds no LoRA factor (lora_A, lora_B); is it a whole "
            "checkpoint rather than an adapter?"
        )
    _refuse(kinds, said, adapter)
    config = {**(base.config or {}), **{key: value for key, value in (config or {}).items() if key not in FIELDS}}
    hub: dict[str, LazyTensor] = dict(base)
    family = base.family
    origin = layouts.get(base.layout, family).bound(config) if base.layout else None
    if origin is not None:
        hub = dict(to_hub(base, origin, origin.config_sizes(config), firsts=origin.config_firsts(config)))
    stated = {"adapter": said, "layout": adapter.facts.layout, "family": adapter.facts.family}
    update = _per_expert(adapter.like(dict(adapter), **stated), hub, source, family, config)
    said = update.adapter or said
    head = headed(hub, update, base.config)
    memory = _in_memory(update, hub | head, family)
    if memory is not None and decoded:
        raise LayoutError(
            "the base is quantised, and the adapter wraps stacked experts, which its files have apart; decode the base "
            'first: dtype="bf16", --dtype bf16'
        )
    if memory is not None:
        hub = dict(base.convert(memory.name, family=family, config=config))
    hub |= head
    stacked, rest = _stacked(hub, update, memory, said) if memory else ({}, update)
    changed: Any = stacked | Updates(hub, rest, kinds, said, _quantisation(base)).made()
    head |= untied(hub, changed, said, base.config)
    hub |= head | changed
    here = memory.name if memory else "hf" if origin else None
    merged = base.like(hub, layout=here, family=family, **_facts(base, adapter, config, bool(head)))
    target = to or base.layout
    if target is None or (origin is not None and memory is None and layouts.get(target, family).is_hub):
        return merged, set(changed) | set(head)
    return merged.convert(target, family=family, config=merged.config), set(changed) | set(head)


def _facts(base: Checkpoint, adapter: Checkpoint, config: dict[str, Any], unties: bool) -> dict[str, Any]:
    """What is known of the merged checkpoint beside its tensors."""
    facts: dict[str, Any] = {"files": tuple(dict.fromkeys((*base.files, *adapter.files))), "config": config or None}
    if unties:
        facts["config"] = untying(config)
        facts["json_files"] = {**base.facts.json_files, "config.json": facts["config"]}
        facts["remarks"] = (*base.remarks, f"{HEAD} keeps the base's weight, no longer tied to the embedding")
    return facts


def _in_memory(update: Mapping[str, LazyTensor], hub: Mapping[str, LazyTensor], family: str | None) -> Layout | None:
    """The family's form in memory, where the adapter wraps parameters that its files have apart; None elsewhere."""
    table = layouts.families().get(family) if family else None
    if table is None or names_of(table) is not None:
        return None  # adapters of experts have layouts of their own
    ends = (".lora_A.weight", ".lora_B.weight")
    modules = (parameter_name(key).rsplit(".", 2)[0] for key in update if key.endswith(ends))
    found = layouts.registry.get_in("hf-fused", table.name)
    if all(module + ".weight" in hub for module in modules) or not isinstance(found, Layout):
        return None
    return found


def _stacked(
    hub: Mapping[str, LazyTensor], update: Checkpoint, memory: Layout, said: AdapterConfig
) -> tuple[dict[str, LazyTensor], Checkpoint]:
    """(stacked parameters with their updates in them, what else the adapter holds)."""
    found = wrappers(hub, update, memory, said)
    flat = all(" (g i) h" in rule.axes for rule in memory.rules if rule.to.endswith(".gate_up_proj"))
    taken = {key for one in found for key in one.keys}
    rest = update.like({key: node for key, node in update.items() if key not in taken})
    return merged_in(hub, update, found, said, flat), rest


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
    if source is None and adapter.facts.layout is None and detect(adapter, sizes, family, adapter.adapter) is None:
        return adapter
    has_magnitudes = any(key.endswith((".lora_magnitude_vector", ".lora_magnitude_vector.weight")) for key in adapter)
    if has_magnitudes or _is_of_some_experts(adapter, hub):
        found = detect(adapter, sizes, family, adapter.adapter)
        if found is not None and found.name == "peft-per-expert":
            return adapter  # each expert's projection is a module already, and grouping has no place for magnitudes
    return adapter.convert("peft-per-expert", source=source, family=family, config=sizes)


def _is_of_some_experts(adapter: Checkpoint, hub: Mapping[str, LazyTensor]) -> bool:
    """Whether an adapter holds every module that its target_modules name, and these are not all experts."""
    targets = (adapter.adapter or AdapterConfig()).values.get("target_modules")
    if not isinstance(targets, (list, tuple)) or not all(isinstance(name, str) for name in targets):
        return False
    named, there = set(targets), {parameter_name(key).rsplit(".lora_", 1)[0] for key in adapter}
    modules = {key.removesuffix(".weight"): None for key in hub if ".experts." in key and key.endswith(".weight")}
    if there.isdisjoint(modules):
        return False
    absent = [module for module in modules if module not in there]
    dots = ((module, [at for at, char in enumerate(module) if char == "."]) for module in absent)
    return bool(absent) and not any(
        module in named or any(module[at + 1 :] in named for at in places) for module, places in dots
    )


def _sizes_of(hub: Mapping[str, LazyTensor], family: str) -> dict[str, int]:
    """What config.json would say, from the base's own experts: shapes of weights that are there are no guess."""
    names = {"e": "num_experts", "i": "moe_intermediate_size", "h": "hidden_size"}
    found: dict[str, int] = {}
    for rule in layouts.get("hf", family).rules:
        template, side, *_ = rule.ends(True)
        for key, node in hub.items():
            if (fields := template.match(key)) is None or "e" not in fields:
                continue
            found["num_experts"] = max(found.get("num_experts", 0), int(fields["e"]) + 1)
            found |= {names[g[0]]: size for g, size in zip(side.groups, node.dims, strict=False) if g[0] in names}
    return found


def _refuse(kinds: Iterable[AdapterKind], said: AdapterConfig, adapter: Checkpoint) -> None:
    """What is not merged at all, by its name, and settings under which LoRA is something else."""
    if whole := next((kind for kind in kinds if isinstance(kind, Unmerged)), None):
        raise LayoutError(f"cannot merge {adapter.path or 'the adapter'}: {whole.why}")
    refused = sorted({name for kind in kinds for name in kind.refuses(said)})
    if refused:
        raise LayoutError(
            f"adapter_config.json sets {', '.join(refused)}: the update is then more than scale * B @ A, or meant for "
            "other base weights; merge it with PEFT"
        )


def _quantisation(base: Checkpoint) -> str:
    """What config.json, or the tensors themselves, call the base's quantisation; "" where it has none."""
    settings = settings_of(base.config)
    if (method := method_of(settings)) is not None:
        return method
    try:
        return next((weight.scheme.name for weight in find(base, settings)), "")
    except LayoutError as error:
        return str(error)

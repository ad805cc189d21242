"""Grouped experts in NeMo's adapter: which keys are whose, what a rank holds, and the splitting of one tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .. import dtypes, layouts
from ..errors import LayoutError, MissingExpertsError
from ..layouts import Layout, Rule, apply, parse_key
from ..mesh.tensors import LazyDTensor, split_experts
from ..move.target import is_dtensor
from ..tensor.lazy import LazyTensor
from ..tensor.wrapping import as_lazy

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

FAMILY = "qwen3_moe"
EXPERTS = "{prefix}layers.{layer}.mlp.experts."
_NATIVE = re.compile(r"(?P<prefix>.*?)(?P<rest>layers\.[0-9]+\.mlp\.experts\.(?:gate_and_up|down)_projs)")
_BIAS = re.compile(r"(?:^|\.)mlp\.experts\.[0-9]+\.(?:gate_proj|up_proj|down_proj)\.bias$")
_ODD_NUMBER = re.compile(r"(?:^|\.)layers\.(?:0\d+\.mlp\.experts\.|\d+\.mlp\.experts\.0\d+\.)")
_EXPERT = re.compile(r"\.mlp\.experts\.([0-9]+)\.")
_UNGATED = Rule(EXPERTS + "{e}.up_proj.weight", EXPERTS + "gate_and_up_projs", "[e] i h -> e h i")


@dataclass(frozen=True)
class Experts:
    """What a config says about the experts, and the layout that groups them."""

    num_experts: int
    inter_dim: int
    gated: bool

    @cached_property
    def layout(self) -> Layout:
        """The rules for base weights; without gating, only up_proj goes into gate_and_up_projs."""
        rules = [rule for rule in layouts.get("nemo", FAMILY).rules if rule.to.endswith("_projs")]
        if not self.gated:
            rules = [_UNGATED, *(rule for rule in rules if rule.to.endswith("down_projs"))]
        return Layout("nemo", FAMILY, tuple(rules))


def is_gated(activation: str) -> bool:
    """Whether an activation takes gate and up. Source: nemo-automodel 0.7, moe/experts.py."""
    return activation in ("swiglu", "swigluoai", "quick_geglu", "geglu")


def world_size() -> int:
    """Number of ranks, before or after torch.distributed is set up."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def code_of(dtype: torch.dtype) -> str:
    """The dtype as the graph writes it."""
    return dtypes.from_torch(dtype)


def is_native(fqn: str) -> bool:
    """Whether a key names a grouped expert weight."""
    return _NATIVE.fullmatch(fqn) is not None


def local_of(value: Any) -> Any:
    """This rank's part of a DTensor, lazy or not; anything else as it is."""
    return value.local if isinstance(value, LazyDTensor) else value.to_local() if is_dtensor(value) else value


def renumber(tensors: Mapping[str, Any], shift: int) -> dict[str, Any]:
    """The same tensors with `shift` added to the expert in every key."""
    if not shift:
        return dict(tensors)
    return {_EXPERT.sub(lambda m: f".mlp.experts.{int(m[1]) + shift}.", key, count=1): t for key, t in tensors.items()}


def hub_key(fqn: str, uses_model_prefix: bool) -> str:
    """A native key with the prefix that Hugging Face's keys of this model have, detected by the last `from_hf`."""
    found = _NATIVE.fullmatch(fqn)
    if found is None or found["prefix"] not in ("", "model."):
        return fqn
    return ("model." if uses_model_prefix else "") + found["rest"]


def keys_of(fqn: str, experts: Experts, ids: range, uses_model_prefix: bool) -> list[str]:
    """The Hugging Face keys that a native tensor splits into, for the experts `ids`."""
    key = hub_key(fqn, uses_model_prefix)
    for rule in experts.layout.rules:
        if fields := parse_key(rule.to).match(key):
            hub = parse_key(rule.hf)
            words = hub.words.get("g", ("",))
            return [hub.format(fields | {"e": str(e), "g": word}) for e in ids for word in words]
    return []


def check_complete(keys: Mapping[str, Any], experts: Experts, ids: range, mesh: DeviceMesh | None) -> None:
    """Raise MissingExpertsError unless every layer with experts has all projections of the experts `ids`."""
    layers: dict[tuple[str, str], None] = {}
    hubs = [parse_key(rule.hf) for rule in experts.layout.rules]
    for key in keys:
        for hub in hubs:
            if fields := hub.match(key):
                layers[fields["prefix"], fields["layer"]] = None
    required = [
        hub.format({"prefix": prefix, "layer": layer, "e": str(e), "g": word})
        for prefix, layer in layers
        for hub in hubs
        for e in ids
        for word in hub.words.get("g", ("",))
    ]
    missing = [key for key in required if key not in keys]
    if missing:
        rank = "" if mesh is None else f" (rank {mesh.get_rank()})"
        more = f" (and {len(missing) - 5} more)" if len(missing) > 5 else ""
        raise MissingExpertsError(
            f"Expert weights missing from checkpoint{rank}: {len(missing)}/{len(required)} required weights not found. "
            f"Layers with experts: {sorted({int(layer) for _, layer in layers})}, "
            f"required experts: {ids.start} to {ids.stop - 1}. First few missing keys: {missing[:5]}{more}; "
            "is a shard incomplete, or does the config state another number?"
        )


def refuse_biases(keys: Mapping[str, Any], expert_bias: bool) -> None:
    """Biases of experts have no grouped form here."""
    key = next((key for key in keys if expert_bias and _BIAS.search(key)), None)
    if key is not None:
        raise NotImplementedError(f"expert_bias=True: experts' biases cannot be grouped, refusing {key!r}")


def only_experts(tensors: Mapping[str, Any], experts: Experts, ids: range) -> dict[str, Any]:
    """Leave out the base weights (and FP8 scales) of experts that other ranks hold."""
    others = set(range(experts.num_experts)).difference(ids)

    def is_elsewhere(key: str) -> bool:
        found = _EXPERT.search(key)
        return found is not None and ".lora_" not in key and int(found[1]) in others

    return {key: value for key, value in tensors.items() if not others or not is_elsewhere(key)}


def pick_weights(tensors: Mapping[str, Any], experts: Experts) -> tuple[dict[str, Any], dict[str, Any]]:
    """(base weights of experts by Hugging Face key, everything else).

    What else stands below the experts (`_extra_state`, `.qweight`, `.input_scale`, fused or native keys) is left as it
    is, as upstream leaves it.
    """
    hubs = [parse_key(rule.hf) for rule in experts.layout.rules]
    weights: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for key, value in tensors.items():
        is_weight = any(hub.match(key) for hub in hubs)
        if not is_weight and _ODD_NUMBER.search(key):
            raise LayoutError(f"{key}: numbers of layers and experts are written without leading zeros; rename the key")
        (weights if is_weight else rest)[key] = value
    return weights, rest


def split(fqn: str, tensor: Any, experts: Experts, uses_model_prefix: bool) -> tuple[dict[str, LazyTensor], range]:
    """One grouped tensor as nodes under Hugging Face keys, and the experts that this rank holds of it."""
    is_down = fqn.endswith("down_projs")
    width = experts.inter_dim * (2 if experts.gated and not is_down else 1)
    shape = tuple(tensor.shape)
    wanted = f"[{experts.num_experts}, " + (f"{width}, hidden]" if is_down else f"hidden, {width}]")
    if len(shape) != 3 or shape[0] != experts.num_experts or shape[1 if is_down else 2] != width:
        raise LayoutError(f"{fqn} has shape {list(shape)}, expected {wanted} from the config")
    ids, mesh, placements, tensor = place(fqn, tensor, experts.num_experts)
    local = as_lazy(local_of(tensor), at_once=True)
    if not ids:
        return {}, ids
    made = apply({hub_key(fqn, uses_model_prefix): local}, experts.layout, False, {"e": len(ids)})
    made = renumber(made, ids.start)
    if mesh is not None:
        dims = (shape[2], shape[1]) if is_down or not experts.gated else (experts.inter_dim, shape[1])
        made = {key: LazyDTensor(node, mesh, placements, dims) for key, node in made.items()}
    return made, ids


def place(fqn: str, tensor: Any, num_experts: int) -> tuple[range, Any, tuple[Any, ...], Any]:
    """Of a grouped tensor: this rank's experts, the mesh and placements that its experts stay spread over, the tensor.

    One mesh dimension splits the experts (`ep`, or else the first Shard(0)); it is spent by splitting. The others stay,
    one axis lower and transposed. Source: nemo-automodel 0.7, split_experts_weights_dtensor_aware.
    """
    everything = range(num_experts)
    if not is_dtensor(tensor) and not isinstance(tensor, LazyDTensor):
        return everything, None, (), tensor
    from torch.distributed.tensor import Replicate, Shard

    mesh, placements = tensor.device_mesh, tuple(tensor.placements)
    if not isinstance(placements[-1], Replicate) and placements[-1] != Shard(0):
        raise LayoutError(
            f"{fqn} has unsupported DTensor placement: {placements[-1]}. Expected Shard(dim=0) or Replicate for expert "
            "parallelism."
        )
    if Shard(2) in placements and fqn.endswith("gate_and_up_projs"):  # gate and up lie side by side there
        placements = tuple(Replicate() if placement == Shard(2) else placement for placement in placements)
        tensor = tensor.redistribute(mesh, placements)
    names = tuple(mesh.mesh_dim_names or ())
    spent = names.index("ep") if "ep" in names else placements.index(Shard(0)) if Shard(0) in placements else None
    ids = everything
    if spent is not None and placements[spent] == Shard(0):
        ids = _ids_here(fqn, local_of(tensor).shape[0], num_experts, mesh.size(spent), mesh.get_local_rank(spent))
    kept = [k for k in range(len(placements)) if k != spent]
    if not any(mesh.size(k) > 1 for k in kept):
        return ids, None, (), tensor
    moved = {1: Shard(1), 2: Shard(0)}
    turned = tuple(moved.get(getattr(placements[k], "dim", 0), Replicate()) for k in kept)
    return ids, mesh if spent is None else mesh[tuple(names[k] for k in kept)], turned, tensor


def _ids_here(fqn: str, num_local: int, num_experts: int, num_ranks: int, rank: int) -> range:
    """This rank's experts: NeMo's even shares, or torch's chunks, whichever its local part has."""
    even = split_experts(num_experts, num_ranks, rank)
    step = -(-num_experts // num_ranks)
    chunk = range(min(rank * step, num_experts), min((rank + 1) * step, num_experts))
    for ids in (even, chunk):
        if len(ids) == num_local:
            return ids
    raise LayoutError(
        f"{fqn}: rank {rank} of {num_ranks} holds {num_local} of {num_experts} experts, expected {len(even)}"
    )

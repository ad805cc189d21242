"""LoRA on experts in NeMo's adapter: grouped tensors to PEFT's ParamWrapper or per-expert keys, and back.

The tables are lazysd.layouts'; here is which generation of PEFT a call means, and which one a file shows.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .. import layouts
from ..errors import LayoutError
from ..layouts import Layout, Rule, apply
from ..move.target import is_dtensor
from ..peft.config import AdapterConfig
from ..peft.generation import fits
from ..peft.names import LoraNames
from ..peft.tables import GENERATIONS
from ..tensor.lazy import LazyTensor
from ..tensor.wrapping import as_lazy
from . import grouped
from .grouped import EXPERTS, FAMILY
from .results import finish

logger = logging.getLogger(__name__)

OLDER, NEWER = GENERATIONS
_STAMPS = {"peft-0.18": OLDER, "peft-0.19": NEWER, "peft-0.19.1": NEWER}  # the last one is what nemo-automodel writes
_READERS = {OLDER: "PEFT 0.18 to 0.19.0", NEWER: "PEFT 0.19.1 and later"}
_NATIVE = re.compile(r".*\.mlp\.experts\.lora_(?:gate_and_up|down)_[AB]")
_WRAPPED = re.compile(r"(?:.*\.)?layers\.[0-9]+\.mlp\.experts\.(?:base_layer\.)?lora_[AB]\.weight")
_UNGATED = (
    Rule(EXPERTS + "lora_gate_and_up_A", EXPERTS + "{e}.up_proj.lora_A.weight", "e h r -> [e] r h"),
    Rule(EXPERTS + "lora_gate_and_up_B", EXPERTS + "{e}.up_proj.lora_B.weight", "e r i -> [e] i r"),
)
_DOWN_ALONE = AdapterConfig({"target_parameters": ["down_proj"]})  # a wrapper without base_layer is down's, as in NeMo
_APART = re.compile(r"(?:.*\.)?layers\.[0-9]+\.mlp\.experts\.[0-9]+\.(?:gate|up|down)_proj\.lora_[AB]\.weight")


def is_native(fqn: str) -> bool:
    """Whether a key names a grouped LoRA tensor."""
    return _NATIVE.fullmatch(fqn) is not None


def known_layout(name: str) -> str:
    """The ParamWrapper layout a person or a stamp means. Raises LayoutError naming the ones there are."""
    if name not in _STAMPS:
        raise LayoutError(f"unknown ParamWrapper layout {name!r}; expected one of {', '.join(map(repr, _STAMPS))}")
    return _STAMPS[name]


def asked_for(kwargs: Mapping[str, Any]) -> str | None:
    """The generation that the keywords of a call state, None where they state none."""
    asked = {known_layout(name)} if (name := kwargs.get("peft_layout")) is not None else set()
    if (legacy := kwargs.get("legacy_paramwrapper_layout")) is not None:
        asked.add(OLDER if legacy else NEWER)
    if len(asked) > 1:
        raise LayoutError(f"peft_layout={name!r} and legacy_paramwrapper_layout={legacy} contradict each other")
    return next(iter(asked), None)


class ParamWrapperMixin:
    """The LoRA half of the adapter. Needs `config`, `moe_config`, `peft_layout`, `_is_gated_moe`."""

    config: Any
    moe_config: Any
    peft_layout: str | None
    _paramwrapper_layout_hint: str | None

    @property
    def _is_gated_moe(self) -> bool:
        raise NotImplementedError

    @property
    def _v5_peft_target_parameters(self) -> tuple[str, ...]:
        """The parameters that NeMo's export lists in adapter_config.json."""
        return ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")

    def _v5_peft_hf_expert_path_segment(self) -> str:
        """The Hugging Face module that owns those parameters."""
        owners = [name.rsplit(".", 1)[0] for name in self._v5_peft_target_parameters]
        return owners[0] if owners else self._expert_path_segment

    @property
    def _expert_path_segment(self) -> str:
        """The native module of the experts, below a layer."""
        return "mlp.experts"

    def _convert_lora_to_paramwrapper(
        self, fqn: str, tensor: Any, legacy_layout: bool | None = None
    ) -> list[tuple[str, Any]]:
        """One grouped LoRA tensor folded for PEFT, as [(key, tensor)]; a key that is none comes back as it is."""
        made = (
            self._lora_to_hf(fqn, tensor, legacy_paramwrapper_layout=legacy_layout) if is_native(fqn) else {fqn: tensor}
        )
        return list(finish(made, {fqn: tensor}, as_dict=True).items())

    def _convert_paramwrapper_to_native(self, state_dict: Mapping[str, Any]) -> Any:
        """Folded LoRA tensors grouped again; other keys as they are."""
        return finish(self._unwrap(dict(state_dict), {}), state_dict)

    def _lora_to_hf(self, fqn: str, tensor: Any, **kwargs: Any) -> dict[str, Any]:
        num_experts = self.moe_config.n_routed_experts
        if tensor.ndim != 3 or tensor.shape[0] != num_experts:
            raise LayoutError(f"{fqn} has shape {list(tensor.shape)}, expected [{num_experts}, …, …] from the config")
        if kwargs.get("v4_compatible") or not self._v5_peft_target_parameters:
            ids, mesh, _, tensor = grouped.place(fqn, tensor, num_experts)
            if mesh is not None:
                raise LayoutError(f"{fqn} is spread over more than its experts; gather it first (full_tensor())")
            local = as_lazy(grouped.local_of(tensor), at_once=True)
            layout, rules = self._apart()
            made = apply({fqn: local}, layout, True, {"e": len(ids)}, rules) if ids else {}
            return dict(grouped.renumber(made, ids.start))
        generation = asked_for(kwargs) or self.peft_layout or NEWER
        logger.info("%s: written as %s, which %s reads", fqn, generation, _READERS[generation])
        whole = as_lazy(tensor.full_tensor() if is_dtensor(tensor) else tensor, at_once=True)
        layout, rules = _folded(generation)
        return dict(apply({fqn: whole}, layout, True, {"e": num_experts}, rules))

    def _lora_from_hf(self, tensors: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Folded and per-expert LoRA tensors as grouped nodes; other values are handed back."""
        apart = {key: as_lazy(value, at_once=True) for key, value in tensors.items() if _APART.fullmatch(key)}
        layout, rules = self._apart()
        made = apply(apart, layout, False, {"e": self.moe_config.n_routed_experts}, rules)
        return self._unwrap({key: value for key, value in tensors.items() if key not in apart} | made, kwargs)

    def _unwrap(self, tensors: dict[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        wrapped = {key: as_lazy(value, at_once=True) for key, value in tensors.items() if _WRAPPED.fullmatch(key)}
        if not wrapped:
            return tensors
        layout, rules = _folded(self._generation_of(wrapped, kwargs))
        made = apply(wrapped, layout, False, {"e": self.moe_config.n_routed_experts}, rules)
        return {key: value for key, value in tensors.items() if key not in wrapped} | made

    def _generation_of(self, wrapped: Mapping[str, LazyTensor], kwargs: Mapping[str, Any]) -> str:
        """The generation of PEFT that wrote these tensors: as stated, if shapes allow, or the only one they fit."""
        stated = asked_for(kwargs)
        if stated is None and self._paramwrapper_layout_hint is not None:
            stated = known_layout(self._paramwrapper_layout_hint)
        hidden = getattr(self.moe_config, "dim", None) or getattr(self.config, "hidden_size", None)
        inter = self.moe_config.moe_inter_dim
        words = ("gate_proj", "up_proj") if self._is_gated_moe else ("up_proj",)
        names = LoraNames(EXPERTS, inner_words=words)
        config = {"hidden_size": hidden, "moe_intermediate_size": inter}
        possible = {name for name in GENERATIONS if fits(name, wrapped, names, _DOWN_ALONE, config)}
        if not possible:
            raise LayoutError(
                f"the LoRA tensors (first {next(iter(wrapped))}) fit neither generation of PEFT's ParamWrapper with "
                f"hidden size {hidden}, expert width {inter}: another model's adapter, or tensors of both generations"
            )
        if stated is not None and stated not in possible:
            raise LayoutError(
                f"the ParamWrapper layout is stated as {stated}, but the shapes only fit {possible.pop()}"
            )
        if stated is None and len(possible) > 1:
            stated = self.peft_layout
            if stated is None:
                raise LayoutError(
                    "cannot tell which ParamWrapper layout this adapter has: with these dimensions both generations of "
                    "PEFT write the same shapes. State it: from_hf(…, peft_layout='peft-0.18') or 'peft-0.19'"
                )
        return stated or possible.pop()

    def _apart(self) -> tuple[Layout, tuple[Rule, ...]]:
        """The per-expert layout, and its rules for LoRA."""
        layout = layouts.get("peft-per-expert", FAMILY)
        rules = _only_lora(layout.rules)
        return layout, rules if self._is_gated_moe else (*_UNGATED, *(r for r in rules if "lora_down" in r.hf))


def _only_lora(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if "lora_" in rule.hf)


def _folded(generation: str) -> tuple[Layout, tuple[Rule, ...]]:
    """The ParamWrapper layout of a generation, and its rules for LoRA."""
    layout = layouts.get(generation, FAMILY)
    return layout, _only_lora(layout.rules)

"""NeMo Automodel's adapters for grouped experts, on lazysd's graph: same interface and results, lazy for lazy input.

Source of the behaviour: nemo-automodel 0.7.0, models/qwen3_moe/state_dict_adapter.py. It need not be installed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .. import dtypes
from ..errors import MissingExpertsError
from ..facts import check_whole
from ..graph.rewrite import cast
from ..layouts import Rule, apply
from ..mesh.tensors import LazyDTensor, experts_of, on_mesh
from ..move.target import is_dtensor
from ..quantization import EXPERTS_AND_ATTENTION, block_size, dequantize_pairs, quantize_pairs
from ..tensor.lazy import LazyTensor
from ..tensor.wrapping import as_lazy
from . import grouped, lora, spelling, upstream
from .results import finish, on_meta, views, wanting_grad

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

_BACKENDS_OF_MODEL_STORAGE = ("gmm", "torch_mm", "torch_mm_mxfp8")
logger = logging.getLogger(__name__)


class Qwen3MoeStateDictAdapter(lora.ParamWrapperMixin, *upstream.bases()):  # type: ignore[misc]
    """Convert Qwen3-MoE state dicts between Hugging Face's per-expert keys and NeMo's grouped ones.

    The other families' adapters (families.py) are this one with other names for what stands beside the experts.

    Torch tensors in give torch tensors out, lazy tensors (a Checkpoint, say) give a Checkpoint that has read nothing.
    A tensor that is no expert's comes back as the very same object. Where nemo-automodel can be imported, this is a
    subclass of its `MoESplitExpertsStateDictMixin` and `StateDictAdapter`, which its checkpointing asks for.

    >>> import torch
    >>> from types import SimpleNamespace
    >>> from lazysd.adapters.nemo import Qwen3MoeStateDictAdapter
    >>> moe = SimpleNamespace(n_routed_experts=2, moe_inter_dim=3, expert_activation="swiglu")
    >>> adapter = Qwen3MoeStateDictAdapter(None, moe, None, dtype=torch.bfloat16)
    >>> key = "model.layers.0.mlp.experts.{}.{}_proj.weight"
    >>> hf = {key.format(e, g): torch.zeros(3, 4) for e in range(2) for g in ("gate", "up")}
    >>> hf |= {key.format(e, "down"): torch.zeros(4, 3) for e in range(2)}
    >>> native = adapter.from_hf(hf)
    >>> native["model.layers.0.mlp.experts.gate_and_up_projs"].shape
    torch.Size([2, 4, 6])
    >>> sorted(adapter.to_hf(native)) == sorted(hf)
    True

    Args:
        config: the model's config; `hidden_size` settles undecided LoRA shapes, nothing else is read.
        moe_config: needs `n_routed_experts`, `moe_inter_dim` and `expert_activation` (or `is_gated`).
        backend: NeMo's backend; where there is one, it says whether grouped tensors are the model's own memory.
        dtype: what `from_hf` casts expert weights to.
        peft_layout: the ParamWrapper generation that `to_hf` writes, "peft-0.18" or "peft-0.19" (as upstream unasked).
    """

    family: ClassVar[str] = "qwen3_moe"
    spelling: ClassVar[tuple[Rule, ...]] = ()  # renames beyond those of the family's table
    quantized: ClassVar[re.Pattern[str]] = EXPERTS_AND_ATTENTION  # keys that to_hf(quantization=True) writes as FP8
    default_dtype: ClassVar[str] = "F32"
    loads_in_place: ClassVar[bool] = True  # NeMo's own adapter of this family offers loading through views

    def __init__(
        self,
        config: Any,
        moe_config: Any,
        backend: Any,
        dtype: torch.dtype | None = None,
        *,
        peft_layout: str | None = None,
    ):
        self.config = config
        self.moe_config = moe_config
        self.backend = backend
        self.dtype = dtypes.to_torch(self.default_dtype) if dtype is None else dtype
        self.peft_layout = lora.known_layout(peft_layout) if peft_layout is not None else None
        self._uses_model_prefix = True
        self._paramwrapper_layout_hint: str | None = None  # NeMo's checkpointing sets it from the adapter's stamp
        self._inplace_loaded: dict[str, range] = {}  # native keys whose views were handed out to be loaded into
        self._view_loaded: set[str] = set()

    @property
    def _is_gated_moe(self) -> bool:
        given = getattr(self.moe_config, "is_gated", None)
        return grouped.is_gated(self.moe_config.expert_activation) if given is None else bool(given)

    @property
    def view_loaded_native_keys(self) -> set[str]:
        """Native keys that the last `from_hf` left out, because they were loaded through views of the model."""
        return set(self._view_loaded)

    @property
    def supports_low_memory_dcp_load(self) -> bool:
        """Whether `to_hf(…, for_checkpoint_load=True)` gives views of the model's own memory."""
        mok = getattr(self.backend, "dispatcher", None) == "mok"
        biased = getattr(self.moe_config, "expert_bias", False)
        return self.loads_in_place and self._storage_is_model and not mok and not biased

    @property
    def _storage_is_model(self) -> bool:
        """Whether the grouped tensors that the backend exposes are the model's parameters, not copies."""
        dispatcher, experts = (getattr(self.backend, name, None) for name in ("dispatcher", "experts"))
        if dispatcher == "mok":
            return experts != "te"
        if dispatcher not in ("deepep", "hybridep", "uccl_ep") or grouped.world_size() == 1:
            return True
        return experts in _BACKENDS_OF_MODEL_STORAGE

    def to_hf(
        self,
        state_dict: Mapping[str, Any],
        exclude_key_regex: str | None = None,
        quantization: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The state dict under Hugging Face keys, experts split.

        Torch tensors come back contiguous, in memory of their own; with `for_checkpoint_load=True` they are views of
        the grouped tensors, to load into. Of a DTensor, the experts of this rank come out.

        Args:
            exclude_key_regex: leaves out the Hugging Face keys that it matches from their start.
            quantization: write expert and attention weights as FP8 in blocks of 128 x 128, with `_scale_inv`.
            v4_compatible: split LoRA tensors by expert; otherwise they are folded for PEFT's ParamWrapper.
            peft_layout, legacy_paramwrapper_layout: the ParamWrapper generation, over the constructor's.

        Raises:
            ValueError: a shape or a DTensor placement that does not fit the config.
        """
        check_whole(state_dict, "convert")
        kwargs |= {"exclude_key_regex": exclude_key_regex, "quantization": quantization}
        result: dict[str, Any] = {}
        with_grad: list[str] = []
        for fqn, tensor in state_dict.items():
            made = self._nodes_of(fqn, tensor, **kwargs)
            result |= made
            with_grad += made if getattr(tensor, "requires_grad", False) else ()
        return wanting_grad(finish(result, state_dict), with_grad)

    def convert_single_tensor_to_hf(self, fqn: str, tensor: Any, **kwargs: Any) -> list[tuple[str, Any]]:
        """One tensor of `to_hf`, as a list of (key, tensor). Takes the keywords of `to_hf`."""
        return list(finish(self._nodes_of(fqn, tensor, **kwargs), {fqn: tensor}, as_dict=True).items())

    def get_hf_state_dict_keys(self, state_dict: Mapping[str, Any]) -> list[str]:
        """The keys that `to_hf` would give, in its order. Converts and reads nothing.

        Args:
            state_dict: native keys to tensors of any kind; only shapes and placements count.
        """
        made: dict[str, Any] = {}
        for fqn, tensor in state_dict.items():
            made |= self._nodes_of(fqn, on_meta(tensor), exclude_key_regex=r".*_extra_state.*")
        return list(made)

    @property
    def checkpoint_key_aliases(self) -> dict[str, str]:
        """Current key -> older key that a checkpoint may have instead: none in this family."""
        return {}

    def iter_checkpoint_load_parts(self, model_state_dict: Mapping[str, Any], device_mesh: Any = None) -> None:
        """None: a checkpoint of this family needs no loading in parts."""
        return

    def map_peft_target_module_to_hf(self, name: str, *, v4_compatible: bool = False) -> str:
        """A native module's name as Hugging Face has it: the same, in this family."""
        return name

    def _nodes_of(self, fqn: str, tensor: Any, **kwargs: Any) -> dict[str, Any]:
        """Hugging Face keys and values of one tensor: lazy nodes, views, or the tensor itself where nothing applies."""
        pattern, for_load = kwargs.get("exclude_key_regex"), bool(kwargs.get("for_checkpoint_load"))
        made: dict[str, Any]
        if lora.is_native(fqn):
            made = self._lora_to_hf(fqn, tensor, **kwargs)
        elif grouped.is_native(fqn):
            experts = grouped.Experts(
                self.moe_config.n_routed_experts, self.moe_config.moe_inter_dim, self._is_gated_moe
            )
            made, ids = grouped.split(fqn, tensor, experts, self._uses_model_prefix)
            if for_load and not kwargs.get("quantization"):
                made = self._load_views(fqn, tensor, made, ids)
        else:
            made = {fqn: tensor}
        made = spelling.hub(made, self.family, self.spelling)
        if pattern:
            made = {key: value for key, value in made.items() if not re.match(pattern, key)}
        if not kwargs.get("quantization"):
            return made
        return quantize_pairs(made, block_size(self.config), which=self.quantized)

    def _load_views(self, fqn: str, tensor: Any, made: dict[str, Any], ids: range) -> dict[str, Any]:
        """Views of the tensor's own memory for a loader to fill; `from_hf` then knows what was filled in place."""
        if any(isinstance(node, LazyDTensor) for node in made.values()) or isinstance(tensor, LazyTensor):
            return made
        is_model = self._storage_is_model
        if fqn.endswith("gate_and_up_projs") and getattr(self.backend, "dispatcher", None) == "mok":
            is_model = False
        if ids and is_model and (is_dtensor(tensor) or (tensor.is_cuda and not tensor.is_meta)):
            self._inplace_loaded[fqn] = ids
        return views(made)

    def from_hf(self, hf_state_dict: Mapping[str, Any], device_mesh: DeviceMesh | None = None, **kwargs: Any) -> Any:
        """The state dict under NeMo's keys, experts grouped and cast to `dtype`; the input stays as it is.

        FP8 pairs (`weight`, `weight_scale_inv`) are dequantised, LoRA tensors of any PEFT generation become grouped
        ones. On a mesh, this rank's experts become DTensors, and only they are required and read.

        Args:
            device_mesh: dimensions `ep`, `ep_shard`, `ep_replicate`.
            peft_layout, legacy_paramwrapper_layout: the ParamWrapper generation of the input, where known.

        Raises:
            MissingExpertsError: a RuntimeError; names count, layers and the first keys.
            LayoutError: a ValueError; keys or shapes that do not fit, or LoRA shapes that fit both generations.
        """
        check_whole(hf_state_dict, "convert")
        experts = grouped.Experts(self.moe_config.n_routed_experts, self.moe_config.moe_inter_dim, self._is_gated_moe)
        tensors = spelling.native(self._wanted(hf_state_dict), self.family, self.spelling)
        grouped.refuse_biases(tensors, getattr(self.moe_config, "expert_bias", False))
        for key in tensors:
            if ".mlp.experts." in key and key.endswith(".weight"):
                self._uses_model_prefix = key.startswith("model.")
                break
        rest = self._without_views(tensors, experts)
        mine = experts_of(device_mesh, experts.num_experts)
        grouped.check_complete(rest, experts, mine, device_mesh)
        rest = dequantize_pairs(
            grouped.only_experts(rest, experts, mine), grouped.code_of(self.dtype), block_size(self.config)
        )
        weights, rest = grouped.pick_weights(rest, experts)
        local = {key: as_lazy(grouped.local_of(value), at_once=True) for key, value in weights.items()}
        split = any(is_dtensor(value) for value in weights.values())
        if len({node.code for node in local.values()}) > 1:  # an FP8 checkpoint with some experts in BF16, for one
            local = {key: cast(node, grouped.code_of(self.dtype)) for key, node in local.items()}
        made = apply(grouped.renumber(local, -mine.start), experts.layout, True, {"e": len(mine)})
        result: dict[str, Any] = dict(self._lora_from_hf(rest, **kwargs))
        for key, node in made.items():
            node = cast(node, grouped.code_of(self.dtype))
            result[key] = node if device_mesh is None else on_mesh(node, device_mesh, experts.num_experts, split)
        return finish(result, hf_state_dict)

    def leaves_out(self, key: str) -> bool:
        """Whether NeMo's model of this family has no place for a key of the checkpoint: its MTP layers, for one."""
        return False

    def _wanted(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        without = [key for key in tensors if self.leaves_out(key)]
        if not without:
            return tensors
        logger.info("%d tensors have no place in this model and are left out, first %s", len(without), without[0])
        return {key: value for key, value in tensors.items() if key not in set(without)}

    def _without_views(self, state_dict: Mapping[str, Any], experts: grouped.Experts) -> dict[str, Any]:
        """The keys that were not loaded in place; those that were must be there, and are recorded as done."""
        self._view_loaded = set()
        if not self._inplace_loaded:
            return dict(state_dict)
        rest = dict(state_dict)
        for fqn, ids in self._inplace_loaded.items():
            keys = grouped.keys_of(fqn, experts, ids, self._uses_model_prefix)
            found = [key for key in keys if key in rest]
            if not found:
                continue
            if missing := [key for key in keys if key not in rest]:
                raise MissingExpertsError(
                    f"Expert weights missing from checkpoint: {len(missing)}/{len(keys)} of {fqn} were not loaded; "
                    f"first few missing keys: {missing[:5]}"
                )
            for key in keys:
                del rest[key]
            self._view_loaded.add(fqn)
        for fqn in self._view_loaded:
            del self._inplace_loaded[fqn]
        return rest


__all__ = ["Qwen3MoeStateDictAdapter"]

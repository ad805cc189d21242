"""NeMo Automodel's adapters of the families whose experts are stored as Qwen3-MoE's: a few words each.

What stands beside the experts is renamed by the family's own table. Source: nemo-automodel 0.7.0, models/*/
state_dict_adapter.py; tests/test_nemo_families.py compares each with that class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..layouts import Rule
from .adapter import Qwen3MoeStateDictAdapter
from .grouped import EXPERTS

_HUB = "{prefix}layers.{layer}.block_sparse_moe.experts.{e}."
_LAYER = re.compile(r"(?:model\.)?layers\.([0-9]+)\.")


def _all_but(*ends: str) -> re.Pattern[str]:
    """Weights whose names do not end so, and are no norm, head, embedding, router or LoRA."""
    others = "|".join(map(re.escape, ("norm", "lm_head", "embed_tokens", "mlp.gate", *ends)))
    return re.compile(rf"(?!.*(?:{others})\.weight)(?!.*\.lora_).*\.weight")


class _PerExpertLora(Qwen3MoeStateDictAdapter):
    """NeMo writes LoRA of these families by expert; only Qwen3-MoE's and MiniMax-M2's is folded for ParamWrapper."""

    @property
    def _v5_peft_target_parameters(self) -> tuple[str, ...]:
        return ()


class DeepSeekV3StateDictAdapter(_PerExpertLora):
    """DeepSeek-V2, V3, R1, and Kimi-K2 and Moonlight, which are published as such."""

    family = "deepseek_v3"
    quantized = _all_but()
    loads_in_place = False


class DeepSeekV32StateDictAdapter(DeepSeekV3StateDictAdapter):
    """DeepSeek-V3.2."""

    family = "deepseek_v32"
    quantized = _all_but("indexer.weights_proj")


class Glm4MoeStateDictAdapter(_PerExpertLora):
    """GLM-4.5 and later, and GLM-4.7-Flash."""

    family = "glm4_moe"


class GlmMoeDsaStateDictAdapter(Glm4MoeStateDictAdapter):
    """GLM-5 with sparse attention."""

    family = "glm_moe_dsa"
    quantized = _all_but("indexer.weights_proj", "eh_proj")
    loads_in_place = False


class Ernie4_5_MoeStateDictAdapter(_PerExpertLora):
    """ERNIE 4.5, whose MTP layers have no place in NeMo's model."""

    family = "ernie4_5_moe"
    default_dtype = "BF16"

    def leaves_out(self, key: str) -> bool:
        """MTP layers and what goes with them."""
        return key.startswith("model.mtp_")


class HYV3StateDictAdapter(_PerExpertLora):
    """Hunyuan 3, whose MTP layers, numbered after the last layer, have no place in NeMo's model."""

    family = "hy_v3"
    default_dtype = "BF16"

    def leaves_out(self, key: str) -> bool:
        """Layers beyond the config's number."""
        found = _LAYER.match(key)
        return found is not None and int(found[1]) >= getattr(self.config, "num_hidden_layers", 80)


class LagunaStateDictAdapter(_PerExpertLora):
    """Laguna."""

    family = "laguna"
    default_dtype = "BF16"


class Qwen3NextStateDictAdapter(_PerExpertLora):
    """Qwen3-Next, some of whose parameters stay in float32."""

    family = "qwen3_next"

    def forced_hf_dtype_mapping(self, state_dict: Mapping[str, Any]) -> dict[str, str]:
        """Hugging Face keys whose dtype in files is not the model's: what the delta net keeps in float32."""
        ends = ("A_log", "dt_bias")
        return {key: "F32" for key in state_dict if ".linear_attn." in key and key.endswith(ends)}


class MiniMaxM2StateDictAdapter(Qwen3MoeStateDictAdapter):
    """MiniMax-M2, which stores experts as `block_sparse_moe.experts.{e}.{w1,w2,w3}`."""

    family = "minimax_m2"
    quantized = _all_but("block_sparse_moe.gate")
    spelling = tuple(
        Rule(f"{_HUB}{theirs}.{{w:*}}", f"{EXPERTS}{{e}}.{ours}.{{w:*}}", rename=True)
        for theirs, ours in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"))
    )
    loads_in_place = False


__all__ = [
    "DeepSeekV3StateDictAdapter",
    "DeepSeekV32StateDictAdapter",
    "Ernie4_5_MoeStateDictAdapter",
    "Glm4MoeStateDictAdapter",
    "GlmMoeDsaStateDictAdapter",
    "HYV3StateDictAdapter",
    "LagunaStateDictAdapter",
    "MiniMaxM2StateDictAdapter",
    "Qwen3NextStateDictAdapter",
]

"""NeMo Automodel's state dict adapters, under NeMo's names; see lazysd.nemo."""

from ..nemo.adapter import Qwen3MoeStateDictAdapter
from ..nemo.families import (
    DeepSeekV3StateDictAdapter,
    DeepSeekV32StateDictAdapter,
    Ernie4_5_MoeStateDictAdapter,
    Glm4MoeStateDictAdapter,
    GlmMoeDsaStateDictAdapter,
    HYV3StateDictAdapter,
    LagunaStateDictAdapter,
    MiniMaxM2StateDictAdapter,
    Qwen3NextStateDictAdapter,
)

__all__ = [
    "DeepSeekV3StateDictAdapter",
    "DeepSeekV32StateDictAdapter",
    "Ernie4_5_MoeStateDictAdapter",
    "Glm4MoeStateDictAdapter",
    "GlmMoeDsaStateDictAdapter",
    "HYV3StateDictAdapter",
    "LagunaStateDictAdapter",
    "MiniMaxM2StateDictAdapter",
    "Qwen3MoeStateDictAdapter",
    "Qwen3NextStateDictAdapter",
]

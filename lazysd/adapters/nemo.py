"""NeMo Automodel's state dict adapters; see lazysd.nemo."""

from ..nemo.adapter import Qwen3MoeStateDictAdapter

__all__ = ["Qwen3MoeStateDictAdapter"]

"""FP8 checkpoints: weights in blocks with their scales, to plain weights and back. Builds nodes; reads nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from . import dtypes
from .checkpoint import Checkpoint
from .errors import LayoutError
from .graph.compute import Dequantize
from .graph.quantize import QuantizeScale, QuantizeWeight
from .graph.rewrite import build
from .tensor.wrapping import as_lazy

SCALE = "_scale_inv"  # X.weight has its scales in X.weight_scale_inv
BLOCK = (128, 128)
_QUANTIZED = re.compile(r"(?:.*\.)?(?:mlp\.experts\.\d+\.(?:gate|up|down)_proj|self_attn\.[qkvo]_proj)\.weight")


def dequantize(checkpoint: Checkpoint, dtype: str = "bf16") -> Checkpoint:
    """An FP8 checkpoint with plain weights: every `X.weight` and `X.weight_scale_inv` become one `X.weight`.

    Nothing is read; the result converts, plans and saves like any other, and its config.json no longer speaks of
    quantisation. Block sizes come from config.json, so short blocks at the edge are placed right.

        lazysd.quantization.dequantize(lazysd.open("Qwen3-30B-A3B-FP8")).convert("nemo").save("out")

    Args:
        checkpoint: any; without FP8 weights it comes back unchanged.
        dtype: of the weights that were FP8, "bf16", "f32", ….

    Raises:
        LayoutError: a weight without its scales, scales without their weight, or scales of another shape.
    """
    quantized = (checkpoint.config or {}).get("quantization_config")
    block = block_size(checkpoint.config)
    tensors = dequantize_pairs(checkpoint, dtypes.parse(dtype), block)
    if quantized is None or tensors == dict(checkpoint):
        return checkpoint.like(tensors)
    config = {name: value for name, value in (checkpoint.config or {}).items() if name != "quantization_config"}
    return checkpoint.like(tensors, config=config, json_files={**checkpoint.facts.json_files, "config.json": config})


def block_size(config: Any) -> tuple[int, int]:
    """The rows and columns of a block, from config.json (or a transformers config); 128 x 128 if it does not say."""
    table = config if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}
    quantized = table.get("quantization_config")
    if quantized is not None and not isinstance(quantized, Mapping):
        quantized = vars(quantized)
    size = (quantized or {}).get("weight_block_size")
    if size is None:
        return BLOCK
    if not (isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
        raise LayoutError(f"config.json: weight_block_size is {size!r}, expected two positive numbers")
    return size[0], size[1]


def dequantize_pairs(tensors: Mapping[str, Any], code: str, block: tuple[int, int] = BLOCK) -> dict[str, Any]:
    """Every weight with scales as one lazy node of dtype `code`; values that belong to no pair are handed back."""
    scales = {key for key in tensors if key.endswith(SCALE)}
    if alone := [key for key in scales if key.removesuffix(SCALE) not in tensors]:
        raise LayoutError(
            f"{min(alone)} (and {len(alone) - 1} more): scales whose weight is missing; is a shard missing?"
        )
    result: dict[str, Any] = {}
    for key, value in tensors.items():
        if key in scales:
            continue
        if key + SCALE not in scales:
            if key.endswith(".weight") and _code(value) in ("F8_E4M3", "F8_E5M2"):
                raise LayoutError(
                    f"{key} is {_code(value)}, but {key + SCALE} is missing; its codes mean nothing alone"
                )
            result[key] = value
            continue
        if _code(value) not in ("F8_E4M3", "F8_E5M2"):
            raise LayoutError(f"{key} has scales, but is {_code(value)} and not FP8; lazysd does not know this format")
        try:
            result[key] = build(Dequantize(block, code), (as_lazy(value), as_lazy(tensors[key + SCALE])))
        except ValueError as error:
            raise LayoutError(f"{key}: {error}; block sizes come from weight_block_size in config.json") from error
    return result


def quantize_pairs(
    tensors: Mapping[str, Any], block: tuple[int, int] = BLOCK, scale_code: str = "F32"
) -> dict[str, Any]:
    """Expert and attention projections as FP8 codes and scales (lazy nodes); other values are handed back."""
    result: dict[str, Any] = {}
    for key, value in tensors.items():
        if _QUANTIZED.fullmatch(key) is None or _code(value) in ("F8_E4M3", "F8_E5M2"):
            result[key] = value
            continue
        weight = as_lazy(value)
        if weight.ndim != 2:
            raise LayoutError(f"{key} is {list(weight.dims)}; only matrices are quantised in blocks")
        result[key] = build(QuantizeWeight(block, scale_code), (weight,))
        result[key + SCALE] = build(QuantizeScale(block, scale_code), (weight,))
    return result


def _code(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return "no tensor" if dtype is None else value.code if hasattr(value, "code") else dtypes.from_torch(dtype)


__all__ = ["block_size", "dequantize", "dequantize_pairs", "quantize_pairs"]

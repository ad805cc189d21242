"""Casting a checkpoint: which tensors take the new element type, which stay, and what config.json then says."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from typing import Any

from . import dtypes
from .arguments import checked
from .checkpoint import Checkpoint
from .errors import LayoutError
from .graph.rewrite import cast
from .quant.registry import find, settings_of
from .tensor.lazy import LazyTensor

FLOATS = ("F16", "BF16", "F32", "F64")
# Added to a router's scores before the top k are chosen: experts whose scores lie close change places when it is
# rounded. Source: transformers keeps it in float32 (`_keep_in_fp32_modules_strict`).
ALWAYS_KEPT = ("*e_score_correction_bias", "*.expert_bias")
_STATED_AS = ("dtype", "torch_dtype")  # transformers 5 and before


@checked
def cast_checkpoint(checkpoint: Checkpoint, dtype: str, everything: bool = False) -> Checkpoint:
    """The checkpoint with its floating-point tensors in another element type, as a view; nothing is read.

    Integers and booleans stay what they are. What loses by a narrower type stays as well: correction biases of routers,
    and vectors (norms, biases, decays) that are stored wider than most of the checkpoint, which was somebody's choice.
    config.json's `dtype` or `torch_dtype` is changed to the new type, where it has one.

        lazysd.casting.cast_checkpoint(lazysd.open("model"), "bf16").save("model-bf16")

    Args:
        checkpoint: any; quantised weights are decoded before (`lazysd.quantization.dequantize`).
        dtype: "bf16", "f16", "f32" or "f64".
        everything: cast what would stay, too.

    Raises:
        LayoutError: `dtype` is no plain floating-point type; weights are quantised; a tensor holds codes whose scales
            nobody knows.
    """
    code = dtypes.parse(dtype)
    if code not in FLOATS:
        raise LayoutError(
            f"cannot cast to {dtype}: values would be lost without a scale; cast to bf16, f16, f32 or f64, or quantise "
            "(--quantize)"
        )
    if quantised := find(checkpoint, settings_of(checkpoint.config)):
        raise LayoutError(
            f"cannot cast {quantised[0].key}: it is quantised ({quantised[0].scheme.name}), and its codes would stay "
            "beside scales of another type; decode first: lazysd.quantization.dequantize, --dtype"
        )
    coded = [key for key, node in checkpoint.items() if node.code.startswith("F8") or dtypes.is_packed(node.code)]
    if coded:
        raise LayoutError(
            f"cannot cast {coded[0]}{f' and {len(coded) - 1} more' if len(coded) > 1 else ''}: few-bit codes mean "
            "nothing without their scales, and no scheme that lazysd knows says where those are; without --dtype they "
            "are carried as they are"
        )
    kept = set() if everything else set(kept_keys(checkpoint, code))
    tensors = {
        key: node if key in kept or node.code not in FLOATS else cast(node, code) for key, node in checkpoint.items()
    }
    changed = any(tensors[key] is not node for key, node in checkpoint.items())
    config = checkpoint.config
    if config is None or not changed:
        return checkpoint.like(tensors)
    said = _stating(config, str(dtypes.DTYPES[code].torch_name))
    return checkpoint.like(tensors, config=said, json_files={**checkpoint.facts.json_files, "config.json": said})


def kept_keys(checkpoint: Checkpoint, code: str) -> list[str]:
    """The tensors that a cast to `code` leaves alone."""
    most = _most_common(checkpoint)
    return [key for key, node in checkpoint.items() if _stays(key, node, code, most)]


def cast_like(checkpoint: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, dict[str, int]]:
    """The checkpoint cast to the floating-point types that another one has, as a view; and which casts, how often."""
    casts: Counter[str] = Counter()
    tensors = dict(checkpoint)
    for key, node in tensors.items():
        code = other[key].code if key in other else node.code
        if code != node.code and code in FLOATS and node.code in FLOATS:
            tensors[key] = cast(node, code)
            casts[f"cast {dtypes.DTYPES[node.code].label} -> {dtypes.DTYPES[code].label}"] += 1
    return checkpoint.like(tensors) if casts else checkpoint, dict(sorted(casts.items()))


def _stays(key: str, node: LazyTensor, code: str, most: str | None) -> bool:
    if node.code not in FLOATS or dtypes.itemsize(code) >= node.itemsize:
        return False
    if any(fnmatchcase(key, glob) for glob in ALWAYS_KEPT):
        return True
    return node.ndim <= 1 and most is not None and node.itemsize > dtypes.itemsize(most)


def _most_common(checkpoint: Checkpoint) -> str | None:
    """The floating-point type of most elements."""
    counts: Counter[str] = Counter()
    for node in checkpoint.values():
        if node.code in FLOATS:
            counts[node.code] += node.numel()
    return counts.most_common(1)[0][0] if counts else None


def _stating(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The config, and each config in it, with another element type where it states one."""
    return {
        key: name if key in _STATED_AS and isinstance(value, str) else _inner(value, name)
        for key, value in config.items()
    }


def _inner(value: Any, name: str) -> Any:
    """A sub-config (one level: text_config, vision_config) with the type stated; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return {key: name if key in _STATED_AS and isinstance(inner, str) else inner for key, inner in value.items()}

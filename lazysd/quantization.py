"""Quantised checkpoints: to plain weights and back, by the schemes of lazysd.quant. Builds nodes; reads nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from . import dtypes
from .arguments import checked
from .checkpoint import Checkpoint
from .errors import LayoutError
from .graph.node import Node
from .graph.rewrite import build
from .quant import registry
from .quant.base import Settings, method_of
from .quant.encoding import encode
from .quant.fp8_blocks import BLOCK, block_of, settings_for
from .quant.fp8_encoding import QuantizeScale, QuantizeWeight
from .quant.lists import STATED_IN
from .stores.strict_json import listing
from .tensor.wrapping import as_lazy

EXPERTS_AND_ATTENTION = re.compile(
    r"(?:.*\.)?(?:mlp\.experts\.\d+\.(?:gate|up|down)_proj|self_attn\.[qkvo]_proj)\.weight"
)

_CACHES = ("k_scale", "v_scale", "q_scale", "kv_scale", "output_scale")
_SCALES = (*_CACHES, "input_scale", "input_global_scale")


@checked
def dequantize(checkpoint: Checkpoint, dtype: str = "bf16") -> Checkpoint:
    """A quantised checkpoint with plain weights: what stands for a weight (codes, scales, …) becomes the weight.

    Nothing is read; the result converts, plans and saves like any other, and its config.json no longer speaks of
    quantisation. A slice of a decoded weight reads its own codes and scales.

        lazysd.quantization.dequantize(lazysd.open("Qwen3-30B-A3B-FP8")).convert("nemo").save("out")

    Args:
        checkpoint: any; without quantised weights it comes back unchanged.
        dtype: of the weights that were quantised, "bf16", "f32", ….

    Raises:
        LayoutError: a weight without its scales, scales without their weight or of another shape, or a format that
            lazysd does not decode; its quant_method is named.
    """
    checkpoint.facts.check_whole("decode")
    code = dtypes.parse(dtype)
    config = checkpoint.config
    settings = registry.settings_of(config)
    tensors = decode_tensors(checkpoint, code, settings)
    if tensors.keys() == checkpoint.keys() and all(tensors[key] is node for key, node in checkpoint.items()):
        if (method := method_of(settings)) is not None and not registry.is_known(method):
            raise LayoutError(
                f"config.json says quant_method {method!r}, which lazysd does not decode; it can carry these weights "
                "as they are (convert without --dtype), or decode them with the tool that wrote them"
            )
        return checkpoint
    plain = None if config is None else _plain_config(config, dtypes.DTYPES[code].torch_name or "bfloat16")
    left = [key for key, node in tensors.items() if key.endswith(_SCALES) and checkpoint.get(key) is node]
    said = f"{listing(left)}: kept, though no config.json says any more what they scale (a cache, activations)"
    remarks = (*checkpoint.remarks, said) if left else checkpoint.remarks
    return checkpoint.like(tensors, **_stating(checkpoint, plain), remarks=remarks)


@checked
def quantize(checkpoint: Checkpoint, scheme: str, keys: Iterable[str] | None = None, **settings: Any) -> Checkpoint:
    """A checkpoint with few-bit weights: each chosen weight becomes its codes and scales, and config.json says so.

    Plans label it lossy. The codes of a slice are computed from the weight's own blocks. "nvfp4-modelopt" and
    "nvfp4-compressed" need the largest magnitude of each weight, and read it once, here; other schemes read nothing.
    Weights that are quantised already keep their codes where the scheme can hold every value (NVFP4 under its other
    name, MXFP4 in NVFP4), and are refused otherwise.

        lazysd.quantization.quantize(lazysd.open("Qwen3-30B-A3B"), "fp8-blocks").save("out")

    Args:
        checkpoint: any.
        scheme: "fp8-blocks" (as transformers writes it), "mxfp4", "mxfp4-compressed", "nvfp4-modelopt",
            "nvfp4-compressed".
        keys: globs of the weights to encode; by default every matrix of a linear layer or an expert that the format
            has a form for, but no embedding, head or router. What stays plain is listed in config.json.
        settings: what quantization_config shall say, e.g. weight_block_size=[128, 128], scale_fmt="ue8m0".

    Raises:
        LayoutError: no such scheme, one that lazysd does not write, globs that match nothing, and, where they are
            read, NaN or infinity.
    """
    checkpoint.facts.check_whole("quantise")
    found = registry.get(scheme)
    said = registry.settings_of(checkpoint.config)
    config = found.written_config(settings)
    wanted = None if keys is None else tuple(keys)
    tensors, plain = encode(checkpoint, found, config, wanted, said)
    if tensors == dict(checkpoint):
        return checkpoint
    if plain:
        config[found.lists] = plain
    if any(key.endswith("input_global_scale") for key in tensors):
        config = found.with_activations(config)
    whole = {**(checkpoint.config or {}), "quantization_config": config}
    left = [key for key in tensors if key.endswith(_CACHES)]
    remark = f"{listing(left)}: kept, though quantization_config says no more that a cache is quantised"
    remarks = (*checkpoint.remarks, remark) if left and said else checkpoint.remarks
    return checkpoint.like(tensors, **_stating(checkpoint, whole), remarks=remarks)


def _stating(checkpoint: Checkpoint, config: dict[str, Any] | None) -> dict[str, Any]:
    """The facts of a checkpoint that is quantised in another way than it was: no file says the old one."""
    sides = [file for file in checkpoint.facts.side_files if file.name != STATED_IN]
    files = {name: said for name, said in checkpoint.facts.json_files.items() if name != STATED_IN}
    files |= {} if config is None else {"config.json": config}
    return {"config": config, "json_files": files, "side_files": sides}


def _plain_config(config: Mapping[str, Any], torch_name: str) -> dict[str, Any]:
    """config.json of the decoded weights: no word of quantisation, and the dtype that they have now."""
    spoken = ("quantization_config", "compression_config")
    plain: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and any(word in value for word in spoken):
            value = {inner: said for inner, said in value.items() if inner not in spoken}
        if name not in spoken:
            plain[name] = value
    named = [name for name in ("dtype", "torch_dtype") if name in plain] or ["dtype"]
    return {**plain, **dict.fromkeys(named, torch_name)}


class _Wrapped(Mapping[str, Node]):
    """Values of any kind, each made a node when it is asked for."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    def __getitem__(self, key: str) -> Node:
        return as_lazy(self._values[key])

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def decode_tensors(tensors: Mapping[str, Any], code: str, settings: Settings) -> dict[str, Any]:
    """Every quantised weight as one lazy node of dtype `code`, where its codes stood; other values are handed back.

    Args:
        tensors: lazy or torch tensors.
        code: the safetensors code of the decoded weights.
        settings: what quantization_config says.

    Raises:
        LayoutError: as dequantize.
    """
    nodes = _Wrapped(tensors)
    weights = registry.find(nodes, settings, lambda key: _code(tensors[key]))
    at = {weight.parts["codes"]: weight for weight in weights}
    parts = set(registry.parts_of(weights))
    result: dict[str, Any] = {}
    for key, value in tensors.items():
        if key in at:
            result[at[key].key] = registry.decode(at[key], nodes, code, settings)
        elif key not in parts:
            if key.endswith(".weight") and _code(value) in ("F8_E4M3", "F8_E5M2"):
                raise LayoutError(
                    f"{key} is {_code(value)}, but {key}_scale_inv is missing; "
                    "raw FP8 codes without scales mean nothing"
                )
            result[key] = value
    return result


def block_size(config: Any) -> tuple[int, int]:
    """The rows and columns of an FP8 block, from config.json (or a transformers config); 128 x 128 if it says none."""
    return block_of(registry.settings_of(config)) or BLOCK


def dequantize_pairs(tensors: Mapping[str, Any], code: str, block: tuple[int, int] = BLOCK) -> dict[str, Any]:
    """Every FP8 weight with scales as one lazy node of dtype `code`; values that belong to no pair are handed back."""
    mine = {key: value for key, value in tensors.items() if key.endswith((".weight", "_scale_inv"))}
    made = decode_tensors(mine, code, settings_for(block))
    return {key: made.get(key, value) for key, value in tensors.items() if key in made or key not in mine}


def quantize_pairs(
    tensors: Mapping[str, Any],
    block: tuple[int, int] = BLOCK,
    scale_code: str = "F32",
    which: re.Pattern[str] = EXPERTS_AND_ATTENTION,
) -> dict[str, Any]:
    """Matrices as FP8 codes and scales (lazy nodes), expert and attention projections unless `which` matches others.

    Other values are handed back.
    """
    result: dict[str, Any] = {}
    for key, value in tensors.items():
        if which.fullmatch(key) is None or _code(value) in ("F8_E4M3", "F8_E5M2"):
            result[key] = value
            continue
        weight = as_lazy(value)
        if weight.ndim != 2:
            raise LayoutError(f"{key} is {list(weight.dims)}; only matrices are quantised in blocks")
        result[key] = build(QuantizeWeight(block, scale_code), (weight,))
        result[key + "_scale_inv"] = build(QuantizeScale(block, scale_code), (weight,))
    return result


def _code(value: Any) -> str:
    if hasattr(value, "code"):  # without asking for a dtype, for which torch is imported
        return str(value.code)
    dtype = getattr(value, "dtype", None)
    return "no tensor" if dtype is None else dtypes.from_torch(dtype)


__all__ = ["block_size", "decode_tensors", "dequantize", "dequantize_pairs", "quantize", "quantize_pairs"]

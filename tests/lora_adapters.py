"""Small LoRA adapters for tests, in every layout, by eager torch and nothing of lazysd."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoints import noise
from safetensors.torch import save_file

PREFIX = "base_model.model.model."
Tensors = dict[str, torch.Tensor]


def experts_at(layer: int, prefix: str = PREFIX) -> str:
    return f"{prefix}layers.{layer}.mlp.experts."


def native_lora(
    E: int = 3,
    H: int = 4,
    I: int = 5,  # noqa: E741
    r: int = 2,
    *,
    r_down: int | None = None,
    layers: Iterable[int] = (0,),
    wrapped: Iterable[str] = ("gate_up", "down"),
    prefix: str = PREFIX,
    gated: bool = True,
    finite: bool = False,
    seed: int = 0,
) -> Tensors:
    """NeMo's grouped tensors in float32: every bit random, or (`finite`) normally distributed."""
    torch.manual_seed(seed)
    down = r if r_down is None else r_down
    made: Tensors = {}
    for layer in layers:
        shapes = {
            "lora_gate_and_up_A": (E, H, r),
            "lora_gate_and_up_B": (E, r, 2 * I if gated else I),
            "lora_down_A": (E, I, down),
            "lora_down_B": (E, down, H),
        }
        for number, (name, dims) in enumerate(shapes.items()):
            if ("gate_up" if "gate" in name else "down") in wrapped:
                value = torch.randn(dims) if finite else noise(dims, torch.float32, seed + 10 * layer + number)
                made[experts_at(layer, prefix) + name] = value
    return made


def folded(native: Mapping[str, torch.Tensor], generation: str) -> Tensors:
    """As PEFT's ParamWrapper stores it. Rows of lora_A are e*r+k, columns of lora_B are k*E+e."""
    made: Tensors = {}
    for key, tensor in native.items():
        at, _, name = key.rpartition("lora_")
        inner = at + "base_layer." if name.startswith("gate") else at
        if inner == at + "base_layer." and not any(other.startswith(at + "lora_down") for other in native):
            inner = at  # wrapped alone
        goes_in = name.endswith("A")  # (E, in, r); the other factor is (E, r, out)
        if generation == "peft-0.19":
            E, m, n = tensor.shape
            made[inner + ("lora_A.weight" if goes_in else "lora_B.weight")] = (
                tensor.permute(0, 2, 1).reshape(E * n, m) if goes_in else tensor.permute(2, 1, 0).reshape(n, m * E)
            )
        else:
            E, m, n = tensor.shape
            made[inner + ("lora_B.weight" if goes_in else "lora_A.weight")] = (
                tensor.permute(1, 2, 0).reshape(m, n * E) if goes_in else tensor.reshape(E * m, n)
            )
    return {key: tensor.contiguous() for key, tensor in made.items()}


def apart(native: Mapping[str, torch.Tensor], words: tuple[str, ...] = ("gate_proj", "up_proj")) -> Tensors:
    """One LoRA for each expert's projection; gate and up hold the same lora_A."""
    made: Tensors = {}
    for key, tensor in native.items():
        at, _, name = key.rpartition("lora_")
        for e, value in enumerate(tensor):
            if name == "down_A":
                made[f"{at}{e}.down_proj.lora_A.weight"] = value.T.clone(memory_format=torch.contiguous_format)
            elif name == "down_B":
                made[f"{at}{e}.down_proj.lora_B.weight"] = value.T.clone(memory_format=torch.contiguous_format)
            else:
                parts = [value] * len(words) if name.endswith("A") else value.chunk(len(words), dim=1)
                for word, part in zip(words, parts, strict=True):
                    made[f"{at}{e}.{word}.lora_{name[-1]}.weight"] = part.T.clone(memory_format=torch.contiguous_format)
    return made


def in_layout(native: Mapping[str, torch.Tensor], layout: str) -> Tensors:
    if layout == "nemo":
        return dict(native)
    return apart(native) if layout == "peft-per-expert" else folded(native, layout)


def adapter_config(layout: str = "peft-0.19", **fields: Any) -> dict[str, Any]:
    """What PEFT writes, as far as it matters here."""
    versions = {"peft-0.18": "0.18.1", "peft-0.19": "0.21.2"}
    stacked = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    found: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 8, "bias": "none", "lora_dropout": 0.0,
        "base_model_name_or_path": "tiny", "target_modules": [], "target_parameters": stacked,
    }  # fmt: skip
    if layout == "peft-per-expert":
        found |= {"target_modules": ["gate_proj", "up_proj", "down_proj"], "target_parameters": None}
    if layout in versions:
        found["peft_version"] = versions[layout]
    return found | fields


def write_adapter(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None, stamp: Any = None
) -> Path:
    """A folder as PEFT's save_pretrained writes it; `stamp` is automodel_peft_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    if stamp is not None:
        (folder / "automodel_peft_config.json").write_text(json.dumps(stamp))
    return folder


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found

"""What an adapter's tensors hold: wrapped expert parameters, and modules beside them with a LoRA of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import layouts
from ..errors import LayoutError
from .config import Adapted, AdapterConfig, parameter_name
from .converting import to_hub
from .kind import AdapterKind, kinds_of
from .pairs import adapted
from .tables import GENERATIONS

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

_FIRST_FACTORS = (".lora_A.weight", ".lora_embedding_A")
_NOTHING = Adapted({}, {})


def held_by(ckpt: Checkpoint) -> Adapted:
    """What a checkpoint's tensors hold, where its layout is known; nothing where it is not. Reads no tensor data."""
    if ckpt.layout is None or ckpt.family is None:
        return _NOTHING
    said = ckpt.adapter or AdapterConfig()
    origin = layouts.get(ckpt.layout, ckpt.family).bound(ckpt.config)
    return adapted(to_hub(ckpt, origin, origin.config_sizes(ckpt.config), said), origin, said)


def lora_modules(ckpt: Checkpoint) -> dict[str, int]:
    """Modules with a LoRA that no rule of a layout folds, each with its rank: the rows of its lora_A."""
    claimed = layouts.get(ckpt.layout, ckpt.family).own_keys if ckpt.layout and ckpt.family else ()
    found: dict[str, int] = {}
    for key, node in ckpt.items():
        end = next((end for end in _FIRST_FACTORS if key.endswith(end)), None)
        if end is not None and node.ndim and not any(template.match(key) for template in claimed):
            found[parameter_name(key.removesuffix(end))] = node.dims[0]
    return found


def adapter_summary(ckpt: Checkpoint) -> dict[str, Any]:
    """What an adapter holds: its kind, rank, alpha, generation, targets, experts, size. Reads no tensor data.

    Values that differ between parameters come as sorted lists; what cannot be told is None, and `problem` says why.
    """
    said = ckpt.adapter or AdapterConfig()
    kind, marks, problem = _kind(ckpt, said)
    lora = [key for key in ckpt if any(mark in key for mark in (*marks, ".lora_"))] or list(ckpt)
    summary: dict[str, Any] = {
        **(kind.summary(said) if kind else {"kind": None}),
        "layout": None,
        "generation": None,
        "rank": said.values.get("r"),
        "alpha": said.values.get("lora_alpha"),
        "rslora": bool(said.values.get("use_rslora")),
        "num_experts": None,
        "target_parameters": list(said.values.get("target_parameters") or []),
        "target_modules": said.values.get("target_modules"),
        "peft_version": said.values.get("peft_version"),
        "tensors": len(lora),
        "nbytes": sum(ckpt[key].nbytes for key in lora),
        "problem": problem,
    }
    try:
        if ckpt.layout is None or ckpt.family is None:
            return summary | _of_modules(ckpt, said, summary)
        summary["layout"] = ckpt.layout
        summary["generation"] = ckpt.layout if ckpt.layout in GENERATIONS else None
        held = held_by(ckpt)
    except LayoutError as error:
        return {**summary, "problem": str(error)}
    ranks = {rank for rank, _ in held.parameters.values()} | {said.rank(module) for module in held.modules}
    alphas = {alpha for _, alpha in held.parameters.values()} | {said.alpha(module) for module in held.modules}
    return summary | {
        "rank": _one(ranks, summary["rank"]),
        "alpha": _one(alphas, summary["alpha"]),
        "num_experts": _one(set(held.num_experts.values()), None),
        "wrapped_parameters": sorted({name.rsplit(".", 1)[1] for name in held.parameters}),
        "wrapped_modules": sorted({name.rsplit(".", 1)[1] for name in held.modules}),
    }


def _kind(ckpt: Checkpoint, said: AdapterConfig) -> tuple[AdapterKind | None, list[str], str | None]:
    """The kind an adapter is of, that with more than two factors where there are several; or what is wrong.

    Also the marks of all its kinds: DoRA has LoRA's tensors beside its own.
    """
    try:
        kinds = kinds_of(said, ckpt)
    except LayoutError as error:
        return None, [], str(error)
    shown = [kind for kind in kinds if not kind.marks or any(mark in key for key in ckpt for mark in kind.marks)]
    chosen = max(shown or kinds, key=lambda kind: len(kind.marks) == 1, default=None)
    return chosen, [mark for kind in kinds for mark in kind.marks], None


def _of_modules(ckpt: Checkpoint, said: AdapterConfig, summary: dict[str, Any]) -> dict[str, Any]:
    """Rank, alpha and names of modules with a LoRA of their own, where no layout's rules are about them."""
    try:
        modules = lora_modules(ckpt)
        alphas = {said.alpha(module) for module in modules}
    except LayoutError as error:
        return {"problem": summary["problem"] or str(error)}
    return {
        "rank": _one(set(modules.values()), summary["rank"]),
        "alpha": _one(alphas, summary["alpha"]),
        "wrapped_modules": sorted({name.rsplit(".", 1)[-1] for name in modules}),
    }


def _one(values: set[Any], default: Any) -> Any:
    found = sorted(value for value in values if value is not None)
    return found[0] if len(found) == 1 else found or default

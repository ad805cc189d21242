"""Which PEFT wrote a ParamWrapper adapter. Both generations use the same keys, and sometimes the same shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import LayoutError
from ..layouts.detect import Decide, find
from ..layouts.rule import Layout
from ..tensor.lazy import LazyTensor
from .config import AdapterConfig, parameter_name
from .folding import wrapped_modules
from .names import LoraNames, names_in
from .tables import GENERATIONS


def decide(
    rivals: list[Layout],
    tensors: Mapping[str, LazyTensor],
    adapter: AdapterConfig | None,
    config: Mapping[str, object] | None,
) -> Layout:
    """The one generation that the evidence names.

    Evidence: peft_version, NeMo's stamp, and shapes (a file has one generation, one hidden size and one intermediate
    size, so two wrapped parameters of a gated expert always decide).

    Raises LayoutError where pieces of evidence disagree, or where there is none: it is never guessed.
    """
    adapter = adapter or AdapterConfig()
    evidence = adapter.generations()
    names = names_in(rivals[0])
    if names is not None:
        fitting = [layout for layout in rivals if fits(layout.name, tensors, names, adapter, config)]
        if not fitting:
            raise LayoutError(
                "the shapes of the experts' lora_A and lora_B fit no generation of PEFT: hidden and intermediate sizes "
                "come out differently for gate_up_proj and down_proj, or other than config.json states"
            )
        if len(fitting) == 1:
            evidence["the shapes of lora_A and lora_B"] = fitting[0].name
    found = set(evidence.values())
    if len(found) > 1:
        shown = "; ".join(f"{what} says {name}" for what, name in evidence.items())
        raise LayoutError(f"evidence of the adapter's PEFT generation disagrees: {shown}; correct the wrong file")
    if not found:
        choices = " or ".join(f"--from {layout.name}" for layout in rivals)
        raise LayoutError(
            "this adapter may be of PEFT up to 0.19.0 or of a later one, which store the factors of expert weights the "
            "other way round; nothing in it says which (no peft_version in adapter_config.json, no paramwrapper_layout "
            f"in automodel_peft_config.json, shapes that fit both): state it, {choices} (source= in Python)"
        )
    return next(layout for layout in rivals if layout.name in found)


def detect(
    keys: Iterable[str],
    config: Mapping[str, Any] | None = None,
    family: str | None = None,
    adapter: AdapterConfig | None = None,
) -> Layout | None:
    """The layout that the evidence names; None where no key belongs to a layout that a known family has.

    Raises LayoutError where keys of several layouts of a family stand side by side, or evidence is lacking.
    """
    return find(keys, config, family, decider(adapter)).layout


def decider(adapter: AdapterConfig | None) -> Decide:
    """What tells PEFT's generations apart, for layouts.find and layouts.choose."""

    def by_generation(
        rivals: list[Layout], tensors: Mapping[str, Any], config: Mapping[str, Any] | None
    ) -> Layout | None:
        if not {layout.name for layout in rivals} <= set(GENERATIONS):
            return None
        return decide(rivals, {k: t for k, t in tensors.items() if isinstance(t, LazyTensor)}, adapter, config)

    return by_generation


def check_stated(
    layout: Layout,
    tensors: Mapping[str, LazyTensor],
    adapter: AdapterConfig | None = None,
    config: Mapping[str, object] | None = None,
) -> None:
    """Raise LayoutError where evidence speaks against a generation that the caller states."""
    adapter = adapter or AdapterConfig()
    names = names_in(layout)
    if names is None or layout.name not in GENERATIONS or not wrapped_modules(tensors, names):
        return
    for what, name in adapter.generations().items():
        if name != layout.name:
            raise LayoutError(f"layout {layout.name!r} was stated, but {what} says {name}; correct the wrong one")
    if not fits(layout.name, tensors, names, adapter, config):
        raise LayoutError(
            f"layout {layout.name!r} was stated, but the shapes of the experts' lora_A and lora_B forbid it"
        )


def fits(
    generation: str,
    tensors: Mapping[str, LazyTensor],
    names: LoraNames,
    adapter: AdapterConfig,
    config: Mapping[str, object] | None,
) -> bool:
    """Whether one hidden size H and one intermediate size I explain every shape in this generation."""
    nested = config.get("text_config") if config else None
    tables = [table for table in (config, nested) if isinstance(table, Mapping)]
    width = 2 if names.gated else 1
    hidden: set[int] = {table["hidden_size"] for table in tables if isinstance(table.get("hidden_size"), int)}
    wide: set[int] = {
        width * t["moe_intermediate_size"] for t in tables if isinstance(t.get("moe_intermediate_size"), int)
    }
    swapped = generation == "peft-0.19"  # lora_A holds what goes in, lora_B what comes out
    for module, ends in wrapped_modules(tensors, names).items():
        nested_keys = any(end.startswith("base_layer.") for end in ends)
        path = parameter_name(module) + "."
        for start in ("base_layer.", ""):
            is_inner = bool(start)
            if not start and not nested_keys:
                inner, outer = adapter.targets(path + names.inner), adapter.targets(path + names.outer)
                if inner is None or inner == outer:
                    continue
                is_inner = inner
            a, b = (tensors.get(f"{module}.{start}lora_{letter}.weight") for letter in "AB")
            if a is not None and a.ndim == 2:
                _note(a.dims[1], swapped, is_inner, hidden, wide, width)
            if b is not None and b.ndim == 2:
                _note(b.dims[0], not swapped, is_inner, hidden, wide, width)
    return len(hidden) <= 1 and len(wide) <= 1


def _note(size: int, goes_in: bool, is_inner: bool, hidden: set[int], wide: set[int], width: int) -> None:
    """Note the size of an axis that is not folded: what goes into gate and up, and comes out of down, is H wide."""
    if goes_in is is_inner:
        hidden.add(size)
    else:
        wide.add(size if is_inner else width * size)

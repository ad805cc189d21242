"""When two adapters are the same: equal factors mean nothing where rank, alpha or targets say something else.

What one side states and the other does not cannot be compared, so it counts as a difference. Fields that change neither
the merged weights nor the forward pass (the base's name, the task, the version, dropout in training) are left out.
"""

from __future__ import annotations

from math import isclose
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import LayoutError
from .config import CONFIG, STAMP, STAMP_KEY, AdapterConfig, generation_of
from .holding import held_by, lora_modules

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

_SCALING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")  # compared by what they come to
_WITHOUT_EFFECT = (
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "inference_mode", "peft_version"),
    *("lora_dropout", "runtime_config"),
)
_DEFAULTS: dict[str, Any] = {  # what peft 0.21 takes a field for that is not there; others are empty then
    "peft_type": "LORA",
    "bias": "none",
    "init_lora_weights": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}
_SETS = ("target_modules", "target_parameters", "modules_to_save", "exclude_modules")  # their order means nothing


class Unlike(NamedTuple):
    """One respect in which two adapters are not the same, or not known to be."""

    key: str  # a module, or the file
    kind: str  # "scale", "rank", "setting", "adapter_config"
    detail: str


def unlike(
    ours: Checkpoint, theirs: Checkpoint, names: tuple[str, str] = ("first", "second")
) -> tuple[list[Unlike], list[str]]:
    """How the settings of two adapters with the same tensors differ, and what neither of them states. Reads no data.

    Args:
        ours, theirs: in one layout; filtered ones are compared for the modules that are left.
        names: what to call them.
    """
    if not (_is_adapter(ours) or _is_adapter(theirs)):
        return [], []
    here, there = _stated(ours), _stated(theirs)
    if here is None and there is None:
        return [], [f"neither side has {CONFIG}: rank, alpha and targets, on which an adapter's effect depends"]
    if here is None or there is None:
        has, lacks = names if there is None else reversed(names)
        return [Unlike(CONFIG, "adapter_config", f"only in {has}; what {lacks} multiplies its LoRA by is unknown")], []
    try:
        first, second = _pairs(ours, here), _pairs(theirs, there)
    except LayoutError:  # half of a pair, left by a filter: what the files say is compared word by word
        first, second = {}, {}
    found, unknown = _scales(first, second, here, there, names)
    skipped = {*_SCALING, *_WITHOUT_EFFECT} if first and first.keys() == second.keys() else {*_WITHOUT_EFFECT}
    for field in sorted((here.values.keys() | there.values.keys()) - skipped):
        a, b = (_plain(field, said.values.get(field)) for said in (here, there))
        if a != b:
            found.append(Unlike(CONFIG, "setting", f"{field} is {a!r} in {names[0]}, {b!r} in {names[1]}"))
    found += _generations(ours, theirs, here, there, names)
    return found + _stamps(here, there, names), unknown


def _is_adapter(ckpt: Checkpoint) -> bool:
    return ckpt.adapter is not None or any(".lora_" in key for key in ckpt)


def _stated(ckpt: Checkpoint) -> AdapterConfig | None:
    """The adapter's JSON, as far as a save would write or has found one."""
    said = ckpt.adapter
    return said if said is not None and said.files() else None


Pairs = dict[str, tuple[int, float | None]]  # wrapped parameter or module -> rank and alpha


def _scales(
    first: Pairs, second: Pairs, here: AdapterConfig, there: AdapterConfig, names: tuple[str, str]
) -> tuple[list[Unlike], list[str]]:
    """Rank and multiplier of every wrapped parameter and module that both sides hold."""
    found: list[Unlike] = []
    unknown: list[str] = []
    for name in sorted(first.keys() & second.keys()):
        (rank, alpha), (other_rank, other_alpha) = first[name], second[name]
        if rank != other_rank:
            found.append(Unlike(name, "rank", f"{names[0]} has rank {rank}, {names[1]} {other_rank} ({CONFIG})"))
        elif alpha is None and other_alpha is None:
            unknown.append(name)
        elif alpha is None or other_alpha is None:
            has, lacks = names if other_alpha is None else reversed(names)
            found.append(Unlike(name, "scale", f"only {has} states lora_alpha; that of {lacks} is unknown"))
        else:
            a, b = (said.scale(rank, value) for said, value in ((here, alpha), (there, other_alpha)))
            if not isclose(a, b, rel_tol=1e-9):
                detail = f"{names[0]} scales its LoRA by {a:g}, {names[1]} by {b:g} ({CONFIG})"
                found.append(Unlike(name, "scale", detail))
    return found, [f"neither side states lora_alpha for {len(unknown)} modules"] if unknown else []


def _pairs(ckpt: Checkpoint, said: AdapterConfig) -> Pairs:
    """Rank and alpha of every wrapped parameter and module; a rank that nothing states is that of the tensors."""
    pairs = dict(held_by(ckpt).parameters)
    for module, rank in lora_modules(ckpt).items():
        stated = said.rank(module)
        if stated is not None and stated != rank:
            raise LayoutError(f"{module}: its lora_A has rank {rank}, {CONFIG} says {stated}")
        pairs[module] = (rank, said.alpha(module))
    return pairs


def _plain(field: str, value: Any) -> Any:
    """A field's value, with what means the same written in one way."""
    if value in (None, False, "", [], {}, ()):
        value = _DEFAULTS.get(field)
    if field in _SETS and isinstance(value, (list, tuple)):
        return sorted(map(str, value))
    return value


def _generations(
    ours: Checkpoint, theirs: Checkpoint, here: AdapterConfig, there: AdapterConfig, names: tuple[str, str]
) -> list[Unlike]:
    """Of wrapped parameters in no known layout, where the version alone says which factor is which."""
    known = ours.layout is not None and theirs.layout is not None
    if known or not (here.values.get("target_parameters") or there.values.get("target_parameters")):
        return []
    first, second = (str(said.values.get("peft_version")) for said in (here, there))
    if generation_of(first) == generation_of(second):
        return []
    detail = f"written by peft {first} in {names[0]}, {second} in {names[1]}, which swap the factors of parameters"
    return [Unlike(CONFIG, "setting", detail)]


def _stamps(here: AdapterConfig, there: AdapterConfig, names: tuple[str, str]) -> list[Unlike]:
    """NeMo's own file, where it is all that either side has."""
    if here.exists or there.exists or CONFIG in here.files() or CONFIG in there.files():
        return []
    first, second = ({k: v for k, v in (said.stamped or {}).items() if k != STAMP_KEY} for said in (here, there))
    return [
        Unlike(STAMP, "setting", f"{field} is {first.get(field)!r} in {names[0]}, {second.get(field)!r} in {names[1]}")
        for field in sorted(first.keys() | second.keys())
        if first.get(field) != second.get(field)
    ]

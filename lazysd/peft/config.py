"""What an adapter's JSON files say: rank, alpha, targets, the PEFT version. Facts beside the tensors, never guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite, sqrt
from typing import Any

from ..errors import LayoutError
from ..layouts.rule import Layout
from .matching import MAX_FOLLOWED, is_followed, matches
from .names import LoraNames, names_in

CONFIG, STAMP = "adapter_config.json", "automodel_peft_config.json"
STAMP_KEY = "paramwrapper_layout"
_STAMPS = {"peft-0.18": "peft-0.18", "peft-0.19.1": "peft-0.19"}
_FIRST_VERSION = {"peft-0.18": "0.18.1", "peft-0.19": "0.19.1"}  # written where no version of the generation is there
FIELDS = (  # of adapter_config.json that a caller may state
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "peft_version", "peft_type"),
    *("target_modules", "target_parameters", "modules_to_save", "fan_in_fan_out", "bias", "lora_bias"),
)

Scaled = tuple[int, float | None]  # rank and alpha of one wrapped parameter; no alpha where nothing states one


@dataclass(frozen=True)
class AdapterConfig:
    """adapter_config.json, read; `stamped` is automodel_peft_config.json where NeMo wrote one."""

    values: Mapping[str, Any] = field(default_factory=dict)
    stamped: Mapping[str, Any] | None = None
    exists: bool = False  # whether there is a file, which a save then replaces, whatever it lacks

    def __post_init__(self) -> None:
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(self.values.get(name), (Mapping, type(None))):
                raise LayoutError(f"{CONFIG}: {name} should map names to numbers, it is {self.values[name]!r}")
        for name, others in (("target_parameters", ()), ("target_modules", (str,))):
            value = self.values.get(name)
            names = value if isinstance(value, (list, tuple)) else [None]
            if not isinstance(value, (*others, type(None))) and not all(isinstance(item, str) for item in names):
                raise LayoutError(f"{CONFIG}: {name} should be a list of names, it is {self.values[name]!r}")

    def stating(self, config: Mapping[str, Any] | None) -> AdapterConfig:
        """With what the caller states (`config={"r": 8, …}`) put over what the file says."""
        given = {name: config[name] for name in FIELDS if name in config} if config else {}
        return replace(self, values={**self.values, **given}) if given else self

    def files(self) -> dict[str, dict[str, Any]]:
        """What a save writes: adapter_config.json, as far as PEFT could read it, and NeMo's, if it was there."""
        complete = all(self.values.get(name) is not None for name in ("r", "lora_alpha"))
        found = {CONFIG: dict(self.values)} if self.exists or complete else {}
        return found if self.stamped is None else {**found, STAMP: dict(self.stamped)}

    def rank(self, name: str) -> int | None:
        """Rank of the module or parameter `name`, from rank_pattern or r; None where neither says."""
        value = _from_pattern(self.values.get("rank_pattern"), name, self.values.get("r"))
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise LayoutError(f"{CONFIG}: the rank of {name} should be a positive whole number, it is {value!r}")
        return value

    def alpha(self, name: str) -> float | None:
        """lora_alpha of the module or parameter `name`, from alpha_pattern or lora_alpha."""
        value = _from_pattern(self.values.get("alpha_pattern"), name, self.values.get("lora_alpha"))
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value)
        ):
            raise LayoutError(f"{CONFIG}: lora_alpha of {name} should be a number, it is {value!r}")
        return value

    def scale(self, rank: int, alpha: float) -> float:
        """What the product of the two factors is multiplied by."""
        return alpha / sqrt(rank) if self.values.get("use_rslora") else alpha / rank

    def targets(self, parameter: str) -> bool | None:
        """Whether target_parameters names a parameter; None where nothing is said."""
        names = self.values.get("target_parameters")
        return None if names is None else any(parameter == name or parameter.endswith("." + name) for name in names)

    def generations(self) -> dict[str, str]:
        """Which PEFT generation the files state: source of the statement -> layout name."""
        found = {}
        version = self.values.get("peft_version")
        if version is not None and (known := generation_of(str(version))):
            found[f"peft_version {version} in {CONFIG}"] = known
        stamp = (self.stamped or {}).get(STAMP_KEY)
        if stamp is not None:
            if not isinstance(stamp, str) or stamp not in _STAMPS:
                raise LayoutError(f"{STAMP}: {STAMP_KEY} is {stamp!r}, known are {', '.join(_STAMPS)}")
            found[f"{STAMP_KEY} {stamp} in {STAMP}"] = _STAMPS[stamp]
        return found


def _from_pattern(pattern: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's matching: the first key that is a regex for the whole name, or for its end after a dot."""
    num_followed = 0
    for key, value in (pattern or {}).items():
        try:
            num_followed += is_followed(str(key), name)
            if num_followed > MAX_FOLLOWED:
                raise LayoutError(f"more than {MAX_FOLLOWED} patterns cannot be matched at once; name the modules")
            found = matches(str(key), name)
        except LayoutError as error:
            raise LayoutError(f"{CONFIG}: {error}") from error
        if found:
            return value
    return default


def generation_of(version: str) -> str | None:
    """The layout a PEFT version writes; None for what cannot be told (development builds around the change)."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?(.*)", version)
    if not found:
        return None
    number = (int(found[1]), int(found[2]), int(found[3] or 0))
    if number == (0, 19, 1) and found[4].startswith((".dev", "dev")):
        return None
    return "peft-0.19" if number >= (0, 19, 1) else "peft-0.18"


def parameter_name(key: str) -> str:
    """The base model's name of what a key of an adapter belongs to: `base_model.model.` is PEFT's own."""
    return key.removeprefix("base_model.model.")


@dataclass(frozen=True)
class Adapted:
    """What an adapter's tensors hold, found from keys and shapes."""

    parameters: Mapping[str, Scaled]  # every wrapped expert parameter, "model.layers.0.mlp.experts.down_proj"
    num_experts: Mapping[str, int]  # of the same
    modules: tuple[str, ...] = ()  # LoRA modules beside the experts, "model.layers.0.self_attn.q_proj"


def adapter_config_for(layout: Layout, config: AdapterConfig, adapted: Adapted, origin: Layout) -> AdapterConfig:
    """The adapter's JSON for its tensors in another layout; what is not about experts, rank or version stays as it was.

    Args:
        layout: where the tensors go.
        config: what was there.
        adapted: what the tensors hold.
        origin: where they come from.
    """
    names, lora = list(adapted.parameters), names_in(layout)
    if not names or lora is None:
        return config
    values = {"peft_type": "LORA", **config.values}
    targets = list(values.get("target_parameters") or [])
    apart = layout.name == "peft-per-expert"
    aliases = {name: expert_modules(layout, name, adapted.num_experts[name]) if apart else [name] for name in names}
    if apart:
        values["target_parameters"] = [t for t in targets if not any(_covers(t, name) for name in names)] or None
        wanted = [module for modules in aliases.values() for module in modules]
        values["target_modules"] = _retarget(values.get("target_modules"), set(), wanted, adapted.modules)
    else:
        values["target_parameters"] = _target_parameters(targets, names, lora)
        gone = set()
        if origin.name == "peft-per-expert":
            gone = {m for name in names for m in expert_modules(layout, name, adapted.num_experts[name])}
        if gone or values.get("target_modules") is None:
            values["target_modules"] = _retarget(values.get("target_modules"), gone, [], adapted.modules)
    stamped = None if config.stamped is None else {k: v for k, v in config.stamped.items() if k != STAMP_KEY}
    if layout.name in _FIRST_VERSION:
        version = values.get("peft_version")
        if version is None or generation_of(str(version)) != layout.name:
            values["peft_version"] = _FIRST_VERSION[layout.name]
        if stamped is not None:
            stamped[STAMP_KEY] = next(stamp for stamp, name in _STAMPS.items() if name == layout.name)
    return _with_patterns(replace(config, values=values, stamped=stamped), adapted.parameters, aliases)


def _target_parameters(targets: list[str], names: list[str], lora: LoraNames) -> list[str]:
    """target_parameters that name every wrapped parameter of `names`, and no other of the same modules.

    PEFT nests two wrappers where both parameters of a module are named, and then reads other keys: a name that also
    covers a parameter without LoRA gives way to the full names.
    """
    absent = {
        parameter
        for module in dict.fromkeys(name.rsplit(".", 1)[0] for name in names)
        for parameter in (f"{module}.{lora.inner}", f"{module}.{lora.outer}")
        if parameter not in names
    }
    kept = [target for target in targets if not any(_covers(target, name) for name in absent)]
    for name in names:
        if not any(_covers(target, name) for target in kept):
            short = _end_of(name)
            kept.append(name if any(_covers(short, other) for other in absent) else short)
    return kept


def _retarget(targets: Any, gone: set[str], wanted: list[str], modules: tuple[str, ...]) -> list[str]:
    """target_modules without what named experts (`gone`), with what now names them, and all `modules` still named."""
    kept: list[str] = []
    if targets is not None and not isinstance(targets, str):
        ends = {name.split(".", skip)[-1] for name in gone for skip in range(name.count(".") + 1)}
        kept = [target for target in targets if target not in ends]
    known = set(kept)
    left = [
        module for module in modules if not known & {module.split(".", k)[-1] for k in range(module.count(".") + 1)}
    ]
    added = [name for name in wanted if not known & {name.split(".", k)[-1] for k in range(name.count(".") + 1)}]
    return [*kept, *left, *added]


def _end_of(name: str) -> str:
    """mlp.experts.down_proj of model.layers.0.mlp.experts.down_proj."""
    return ".".join(name.rsplit(".", 3)[-3:])


def _covers(target: str, parameter: str) -> bool:
    return parameter == target or parameter.endswith("." + target)


def expert_modules(layout: Layout, parameter: str, num_experts: int) -> list[str]:
    """The per-expert modules behind a stacked parameter: "….experts.0.gate_proj", …"""
    lora = names_in(layout)
    assert lora is not None
    module, last = parameter.rsplit(".", 1)
    words = lora.inner_words if last == lora.inner else (lora.outer,)
    return [f"{module}.{expert}.{word}" for expert in range(num_experts) for word in words]


def _with_patterns(
    config: AdapterConfig, parameters: Mapping[str, Scaled], aliases: Mapping[str, list[str]]
) -> AdapterConfig:
    """Rank and alpha as they are, written as patterns only where what is there would say something else."""
    values = dict(config.values)
    if values.get("r") is None:
        values["r"] = next(iter(parameters.values()))[0]
    for place, which in (("rank_pattern", 0), ("alpha_pattern", 1)):
        read = config.rank if which == 0 else config.alpha
        wrong: dict[str, float | None] = {
            name: pair[which]
            for name, pair in parameters.items()
            if any(read(alias) not in (None, pair[which]) for alias in aliases[name])
            or (which == 0 and config.values.get("r") is None and pair[0] != values["r"])
        }
        if not wrong:
            continue
        ends: dict[str, dict[str, float | None]] = {}
        for name, value in wrong.items():
            ends.setdefault(_end_of(name), {})[name] = value
        patterns: dict[str, float | None] = {}
        for end, found in ends.items():
            everywhere = {pair[which] for name, pair in parameters.items() if _covers(end, name)}
            for name, value in found.items():
                shown = end if len(everywhere) == 1 else name
                patterns[_regex_of(shown, aliases[name])] = value
        stale = values.get(place) or {}  # the first pattern that matches counts
        values[place] = patterns | {key: value for key, value in stale.items() if key not in patterns}
    return replace(config, values=values)


def _regex_of(name: str, aliases: list[str]) -> str:
    """A pattern key: the parameter's own name, or one regex for all experts' modules behind it."""
    module = name.rsplit(".", 1)[0]
    if aliases[0].endswith(name):
        return name
    words = "|".join(dict.fromkeys(alias.rsplit(".", 1)[1] for alias in aliases))
    return rf"{re.escape(module)}\.\d+\.({words})"

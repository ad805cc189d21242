"""Which family and layout a set of keys is in: by model_type, keys, and sizes against shapes. Never by a look-alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..arguments import checked
from ..errors import LayoutError
from . import registry
from .evidence import Evidence
from .grouping import neighbourhoods
from .keys import KeyTemplate
from .rule import Layout, Rule

STATE = (
    "state the family (family=, --family), if the checkpoint is laid out as one of them, or write a table for it "
    "(docs/layouts.md)"
)


# Tells layouts of one family apart whose keys and shapes are alike: (rivals, tensors, config) -> one, or None
Decide = Callable[[list[Layout], Mapping[str, Any], Mapping[str, Any] | None], Layout | None]


@dataclass(frozen=True)
class Found:
    """What the evidence says: one layout, layouts of several families that could not be told apart, or why none."""

    layouts: tuple[Layout, ...] = ()
    why: str = ""  # for people: what decided, or what was missing

    @property
    def layout(self) -> Layout | None:
        """The layout; of several families' that fit, Qwen3-MoE's or the first."""
        return next((found for found in self.layouts if found.family == registry.FIRST), next(iter(self.layouts), None))


@checked
def find(
    tensors: Iterable[str],
    config: Mapping[str, Any] | None = None,
    family: str | None = None,
    decide: Decide | None = None,
    dense: bool = False,
) -> Found:
    """What keys, shapes and config.json say. Raises LayoutError where they contradict each other.

    Args:
        tensors: keys, or better a mapping to lazy tensors, whose shapes are evidence too.
        config: config.json.
        family: stated by the caller; then model_type is not asked.
        decide: tells layouts of one family apart whose keys and shapes are alike, or raises LayoutError.
        dense: also look for families without experts, of which only conversions need to know.
    """
    evidence = Evidence(tensors if isinstance(tensors, Mapping) else dict.fromkeys(tensors))
    if family is not None:
        if family not in registry.family_names():
            raise LayoutError(f"no family {family!r}{registry.hint(family)}")
        return _among([family], evidence, config, decide, f"family {family!r} was stated")
    model_type = model_type_of(config)
    if model_type is None:
        why = "no model_type, so all families were tried"
        names = registry.family_names()
        found = _among([name for name in names if not _is_dense(name)], evidence, config, decide, why)
        if found.layouts or not dense:
            return found
        return _among([name for name in names if _is_dense(name)], evidence, config, decide, why)
    known = registry.family_of(model_type)
    if known is None:
        return Found(why=unknown(config))
    if _is_dense(known) and not dense:
        return Found(why=f"model_type {model_type!r} of config.json has no experts")
    return _among([known], evidence, config, decide, f"model_type {model_type!r} of config.json")


def _is_dense(family: str) -> bool:
    table = registry.families().get(family)
    return table is not None and table.dense


def model_type_of(config: Mapping[str, Any] | None) -> str | None:
    """The model_type that config.json states for the whole model, or else for its text part."""
    for table in (config or {}, (config or {}).get("text_config") or {}):
        value = table.get("model_type") if isinstance(table, Mapping) else None
        if isinstance(value, str) and value:
            return value
    return None


def unknown(config: Mapping[str, Any] | None) -> str:
    """Why a checkpoint of this model_type is not converted, for people."""
    model_type = model_type_of(config)
    quantized = (config or {}).get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
    near = registry.nearest(model_type or "")
    return (
        f"model_type {model_type!r} of config.json is of no known family"
        + (f" (quant_method {method!r})" if method else "")
        + (f"; nearest: {', '.join(near)}" if near else "")
        + f"; {STATE}"
    )


def _among(
    families: list[str], evidence: Evidence, config: Mapping[str, Any] | None, decide: Decide | None, why: str
) -> Found:
    """The layout in each of these families. With several, those count whose sizes explain every shape."""
    found: list[Layout] = []
    errors: list[LayoutError] = []
    several = len(families) > 1
    layouts = (layout for family in families if several for layout in registry.layouts_of(family))
    own_keys = {template.text: template for layout in layouts for template in layout.own_keys}.values()
    for family in sorted(families, key=lambda name: name != registry.FIRST):
        try:
            layout = _within(family, evidence, config, decide)
            if (
                layout is not None
                and several
                and (reason := _unfit(layout, evidence, config) or _elsewhere(layout, own_keys, evidence))
            ):
                raise LayoutError(f"{reason} (read as layout {layout.name!r} of family {family!r})")
        except LayoutError as error:
            errors.append(error)
            continue
        if layout is not None:
            found.append(layout)
    if not found and errors:
        raise errors[0]
    return Found(tuple(found), why if found else "")


def _unfit(layout: Layout, evidence: Evidence, config: Mapping[str, Any] | None) -> str | None:
    """Why a layout of one family among many is not what the keys and shapes are of."""
    table = registry.families().get(layout.family)
    alone = all(any(template.match(key) for template in layout.own_keys) for key in evidence.kinds.values())
    for end in table.has if table and not alone else ():  # experts alone show nothing of what stands beside them
        if not any(key.endswith(end) for key in evidence.kinds.values()):
            return f"no key ends in {end}"
    for end in table.lacks if table else ():
        if key := next((key for key in evidence.kinds.values() if key.endswith(end)), None):
            return f"it has no {key}"
    used = {rule.hf for rule, _ in evidence.used(layout)}
    for rule in layout.rules:
        if rule.hf.endswith(".bias") and rule.hf not in used and rule.hf[: -len("bias")] + "weight" in used:
            return f"no key is {rule.to}"
    return evidence.fits(layout, layout.config_sizes(config))


def _elsewhere(layout: Layout, templates: Iterable[KeyTemplate], evidence: Evidence) -> str | None:
    """A key among the layout's own that only another family has a rule for: then the keys are not of this family."""
    near = neighbourhoods(rule.ends(False) for rule in layout.rules)
    for template in templates:
        key = evidence.first(template)
        if key is None or not any(place.holds(key) for place in near):
            continue
        if all(own.match(key) is None for own in layout.own_keys):
            return f"{key} is of no rule"
    return None


def _within(family: str, evidence: Evidence, config: Mapping[str, Any] | None, decide: Decide | None) -> Layout | None:
    """The first layout of a family that has a rule for every key that belongs to some layout of it."""
    candidates = registry.layouts_of(family)
    seen = evidence.matched({t.text: t for layout in candidates for t in layout.own_keys}.values())
    if not seen:
        return None
    fitting = [layout for layout in candidates if {t.text for t in layout.own_keys} >= set(seen)]
    if not fitting:
        shown = "; ".join(f"{_writer(text, candidates)}: {key}" for text, key in seen.items())
        raise LayoutError(
            f"keys of several layouts stand side by side ({shown}); say which one it is (source=, --from)"
        )
    fitting = _by_renames(fitting, evidence)
    if len(_ways(fitting, evidence)) == 1:
        return fitting[0]
    if decide is not None and (chosen := decide(fitting, evidence.tensors, config)) is not None:
        return chosen
    reasons = {layout.name: evidence.fits(layout, layout.config_sizes(config)) for layout in fitting}
    shaped = [layout for layout in fitting if reasons[layout.name] is None]
    if not shaped:
        shown = "; ".join(f"not {name}, for {reason}" for name, reason in reasons.items())
        raise LayoutError(f"the keys fit several layouts of family {family!r}, the shapes fit none: {shown}")
    if len(_ways(shaped, evidence)) == 1:
        return shaped[0]
    shown = ", ".join(layout.name for layout in shaped)
    raise LayoutError(
        f"keys and shapes fit several layouts of family {family!r} ({shown}); say which one it is (source=, --from), "
        "or state hidden_size and moe_intermediate_size, which would tell (config=, config.json)"
    )


def _by_renames(fitting: list[Layout], evidence: Evidence) -> list[Layout]:
    """Those whose names for other keys are there; where none are, those whose names on disk are not there either."""
    said: dict[str, bool] = {}  # name of a layout -> whether its own names for other keys are there, or the disk's
    for layout in fitting:
        renames = [rule.ends(False) for rule in layout.rules if rule.rename and rule.hf != rule.to]
        if any(evidence.first(end.template) for end in renames):
            said[layout.name] = True
        elif any(evidence.first(end.target) for end in renames):
            said[layout.name] = False
    left = [layout for layout in fitting if said.get(layout.name)] or [f for f in fitting if f.name not in said]
    return left or fitting


def _ways(layouts: list[Layout], evidence: Evidence) -> set[tuple[tuple[str, str], ...]]:
    """The different readings of the keys that are there; a bystander that keeps its name is read in one way."""
    return {
        tuple((str(rule.ends(False).side), rule.to) for rule, _ in evidence.used(one) if not _stays(rule))
        for one in layouts
    }


def _stays(rule: Rule) -> bool:
    return rule.rename and rule.is_identity


def _writer(text: str, candidates: Iterable[Layout]) -> str:
    return next(layout.name for layout in candidates if any(t.text == text for t in layout.own_keys))

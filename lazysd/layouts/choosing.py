"""What a conversion goes from and to, and by which sizes: what the caller states first, then evidence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..arguments import checked
from ..errors import LayoutError
from ..tensor.lazy import LazyTensor
from . import registry
from .agreement import agreed
from .detect import STATE, Found, find, model_type_of, unknown
from .evidence import Evidence
from .rule import Layout, Rule
from .sizes import stated_over


@dataclass(frozen=True)
class Choice:
    """From one layout to another."""

    origin: Layout
    target: Layout
    config: dict[str, Any] | None  # config.json with what was stated put over it
    sizes: Mapping[str, int] = field(default_factory=dict)
    firsts: Mapping[str, int] = field(default_factory=dict)


@checked
def choose(
    tensors: Mapping[str, LazyTensor],
    to: str,
    *,
    source: str | None = None,
    family: str | None = None,
    config: Mapping[str, Any] | None = None,
    stated: Mapping[str, Any] | None = None,
    decide: Any = None,
    where: str | os.PathLike[str] | None = None,
    trusted: bool = False,
) -> Choice:
    """Origin, target and sizes of a conversion.

    Args:
        tensors: keys and nodes of the source.
        to: name of the target layout.
        source, family: stated by the caller.
        config: config.json.
        stated: what the caller puts over it.
        decide: tells layouts apart that keys and shapes do not (see detect.find).
        where: what is converted, for messages.
        trusted: `source` is known, so that keys of it need not be there.

    Raises:
        LayoutError: no family, or several that would give different results; a layout that does not exist; keys of
            which the source layout has none.
    """
    whole = stated_over(config, stated) if stated else dict(config) if config is not None else None
    shown = where or "this mapping"
    if source is not None:
        found = _stated(tensors, source, family, whole, shown)
    else:
        found = find(tensors, whole, family, decide, dense=True)
    if not found.layouts:
        raise LayoutError(f"cannot convert {shown}: {found.why}" if found.why else _no_key(shown, family))
    if len(found.layouts) > 1:
        origin, target = agreed(found, to, tensors, whole)
    else:
        (origin,) = found.layouts
        target = registry.get(to, origin.family)
    if source is not None and not trusted and not Evidence(tensors).holds(origin):
        raise LayoutError(
            f"no key of {shown} is of layout {origin.name!r} of family {origin.family!r}, which was stated; nothing "
            f"would be converted. {STATE[0].upper()}{STATE[1:]}"
        )
    if source is not None and not trusted:
        _refuse_mixture(tensors, origin, target, shown)
    stays = target is origin
    origin = origin.bound(whole)
    target = origin if stays else target.bound(whole)
    sizes = {**origin.config_sizes(whole), **target.config_sizes(whole)}
    firsts = {**origin.config_firsts(whole), **target.config_firsts(whole)}
    for layout in (origin, target):
        if unknown_first := [axis for axis in layout.firsts if axis not in firsts]:
            name = layout.firsts[unknown_first[0]][0]
            said = "{" + ": {".join(f'"{part}"' for part in name.split(".")) + ": …" + "}" * (name.count(".") + 1)
            raise LayoutError(
                f"cannot convert {shown}: experts of several kinds stand in one list, and where the second kind starts "
                f"is not known; state {name}: config={said}, or a config.json beside the files that says so"
            )
    return Choice(origin, target, whole, sizes, firsts)


def _refuse_mixture(tensors: Mapping[str, LazyTensor], origin: Layout, target: Layout, shown: object) -> None:
    """Raise LayoutError where keys of a third layout of the family stand beside those of the one that was stated.

    Where keys of the target are there already, the conversion says what would become the same key; not so where
    they would be renamed with all the rest of their module.
    """
    evidence = Evidence(tensors)
    layouts = registry.layouts_of(str(origin.family))
    others = {t.text: t for layout in layouts for t in layout.own_keys if not t.is_broad}
    for key in evidence.matched(others.values()).values():
        claims = [rule for rule in origin.rules if rule.ends(False).template.match(key) is not None]
        meets = not claims and any(template.match(key) is not None for template in target.own_keys)
        if not meets and all(_is_sweeping(rule) for rule in claims):
            raise LayoutError(
                f"{key} of {shown} is no key of layout {origin.name!r} of family {origin.family!r}, which was "
                "stated, but of another layout of that family: keys of two layouts stand side by side; convert each "
                "alone (--include, select), or correct the layout that is stated (source=, --from)"
            )


def _is_sweeping(rule: Rule) -> bool:
    """Whether a rule renames all that is below a module, whatever that is, and so says nothing of experts there."""
    return rule.rename and not rule.is_identity and rule.ends(False).template.is_broad


def _stated(
    tensors: Mapping[str, LazyTensor], source: str, family: str | None, config: Mapping[str, Any] | None, shown: object
) -> Found:
    """The layout of that name, in the family that is stated or found. Raises LayoutError where no key is of it."""
    evidence = Evidence(tensors)
    model_type = model_type_of(config)
    owner = family or (registry.family_of(model_type) if model_type else None)
    if owner is None and model_type is not None:
        return Found(why=unknown(config))
    if owner is not None:
        return Found((registry.get(source, owner),))
    name = registry.resolve(source)
    found = (registry.get_in(name, known) for known in registry.family_names())
    layouts = [layout for layout in found if isinstance(layout, Layout)]
    if not layouts:
        registry.get(source)  # says which ones there are
    return Found(tuple(layout for layout in layouts if evidence.holds(layout)) or (registry.get(source),))


def _no_key(shown: object, family: str | None) -> str:
    known = ", ".join(registry.names(family))
    return (
        f"no key of {shown} belongs to a known layout ({known}); name it (source=, --from) or register a table of "
        f"your own, or {STATE}; nothing was converted"
    )

"""Which weights of a checkpoint are quantised, and by which scheme. Schemes are the files of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from ..doors import members_of
from ..errors import LayoutError
from ..graph.node import Node
from ..stores.strict_json import show
from .base import CODES, FP8, Form, Scheme, Settings, Weight, label, method_of

Claim = tuple[Scheme, Form]


@cache
def schemes() -> tuple[Scheme, ...]:
    """Every scheme there is, by name."""
    found: list[Scheme] = members_of(__package__, "SCHEME")
    return tuple(sorted(found, key=lambda scheme: scheme.name))


def get(name: str) -> Scheme:
    """A scheme by its name. Raises LayoutError, naming those there are."""
    for scheme in schemes():
        if scheme.name == name:
            return scheme
    raise LayoutError(f"unknown scheme {name!r}; there are {', '.join(scheme.name for scheme in schemes())}")


def is_known(method: str) -> bool:
    """Whether some scheme may be meant by a quant_method."""
    return any(method in scheme.methods for scheme in schemes())


def settings_of(config: Any) -> Mapping[str, Any]:
    """quantization_config of a config.json, at its top or in the config of a part, or of a transformers config."""
    table = config if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}
    for place in (table, *(part for part in table.values() if isinstance(part, Mapping))):
        for name in ("quantization_config", "compression_config"):
            said = place.get(name)
            if isinstance(said, Mapping):
                return said
            if hasattr(said, "__dict__"):
                return vars(said)
            if said is not None:
                raise LayoutError(f"config.json says {name}: {show(said)}, which is no table of settings; correct it")
    return {}


@cache
def _anchors() -> dict[str, tuple[Claim, ...]]:
    """What a name ends in, and whose weight that may tell of; longer ends first."""
    found: dict[str, list[Claim]] = {}
    for scheme in schemes():
        for form in scheme.forms:
            found.setdefault(form.suffixes[form.anchor], []).append((scheme, form))
    return {end: tuple(found[end]) for end in sorted(found, key=len, reverse=True)}


def find(tensors: Mapping[str, Node], settings: Settings, code_of: Callable[[str], str] | None = None) -> list[Weight]:
    """Every quantised weight, in the order of the keys. Reads no tensor data.

    `code_of` says the code of a key whose tensor may be none that a node can be made of.

    Raises LayoutError: scales without their weight, codes of another type, two schemes that fit one weight, and what
    looks like a format's where config.json names another that nobody here knows.
    """
    anchors = _anchors()
    ends = tuple(anchors)
    result: list[Weight] = []
    taken: dict[str, Weight] = {}
    for key in tensors:
        if not key.endswith(ends):
            continue
        claims = [(end, claim) for end in ends if key.endswith(end) for claim in anchors[end]]
        weight = _claimed(key, claims, tensors, settings)
        if weight is None:
            continue
        if (other := taken.get(weight.key)) is not None:
            if key in other.parts.values():
                continue
            by = next(part for role, part in other.parts.items() if role != "codes")
            raise LayoutError(
                f"{weight.key} is scaled twice, by {by} ({other.scheme.name}) and {key} ({weight.scheme.name}); "
                "leave out what is not meant"
            )
        if weight.key in tensors and weight.key not in weight.parts.values():
            raise LayoutError(f"{key} stands for {weight.key}, which is there as well; leave one of them out")
        taken[weight.key] = weight
        result.append(weight)
    method = method_of(settings)
    if result and method is not None and not is_known(method):
        first = result[0]
        raise LayoutError(
            f"config.json says quant_method {show(method)}, which lazysd does not know, though {first.key} is named "
            f"and shaped like {first.scheme.name}: a look-alike is not decoded; where it is that, say "
            f"{show(first.scheme.methods[0])}"
        )
    _refuse_orphans(tensors, set(parts_of(result)), method, code_of or (lambda key: tensors[key].code))
    return result


def _refuse_orphans(
    tensors: Mapping[str, Node], taken: set[str], method: str | None, code_of: Callable[[str], str]
) -> None:
    """Raise LayoutError for a tensor of the format that config.json names, where it is part of no weight."""
    ends: dict[str, list[tuple[str, Claim]]] = {}
    for scheme in schemes():
        for form in scheme.forms if method in scheme.methods else ():
            for end in form.required.values():
                if not form.fused:
                    ends.setdefault(end, []).append((end, (scheme, form)))
    marks = tuple(ends)
    for key in tensors if marks else ():
        for end in ends if key not in taken and key.endswith(marks) else ():
            if key.endswith(end) and (not end.endswith("weight") or code_of(key) in CODES):
                _explain(key, ends[end], tensors)


def _claimed(
    key: str, claims: Iterable[tuple[str, Claim]], tensors: Mapping[str, Node], settings: Settings
) -> Weight | None:
    """The weight that a key tells of; None where it is something else."""
    claims = list(claims)
    fitting: dict[str, Weight] = {}
    for end, (scheme, form) in claims:
        weight = _weight(key.removesuffix(end), scheme, form, tensors)
        if weight is not None and scheme.name not in fitting and scheme.fits(weight.nodes(tensors), settings):
            fitting[scheme.name] = weight
    method = method_of(settings)
    if len(fitting) > 1:  # names and shapes fit several; what config.json says, then who uses more of the tensors
        named = {name: weight for name, weight in fitting.items() if method in weight.scheme.methods}
        fitting = named or fitting
        most = max(len(weight.parts) for weight in fitting.values())
        fitting = {name: weight for name, weight in fitting.items() if len(weight.parts) == most}
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    if fitting:
        raise LayoutError(
            f"{key}: fits the schemes {', '.join(fitting)}; say which it is with quant_method in config.json"
        )
    telling = [claim for claim in claims if _tells(*claim[1], method)]
    if telling:
        _explain(key, telling, tensors)
    return None


def _tells(scheme: Scheme, form: Form, method: str | None) -> bool:
    """Whether a name that ends so has to be part of a quantised weight."""
    return not form.fused and (not form.common or method in scheme.methods)


def _weight(stem: str, scheme: Scheme, form: Form, tensors: Mapping[str, Node]) -> Weight | None:
    if any(stem + end not in tensors for end in form.required.values()):
        return None
    parts = {role: stem + end for role, end in form.suffixes.items() if stem + end in tensors}
    return Weight(stem + form.weight, scheme, parts)


def _explain(key: str, claims: list[tuple[str, Claim]], tensors: Mapping[str, Node]) -> None:
    """Say why a key that looks like part of a quantised weight is none."""
    missing: list[tuple[str, Form, list[str]]] = []
    for end, (scheme, form) in claims:
        stem = key.removesuffix(end)
        codes = stem + form.required["codes"]
        lacking = [stem + other for other in form.required.values() if stem + other not in tensors]
        if not lacking:
            raise LayoutError(_misfit(codes, stem, scheme, form, tensors))
        missing.append((codes, form, lacking))
    codes, form, lacking = min(missing, key=lambda found: len(found[2]))
    if codes in lacking and form.anchor != "codes":
        alone = f"{key}: scales whose weight is missing"
    else:
        alone = f"{key} means nothing without {' and '.join(lacking)}, missing here"
    raise LayoutError(f"{alone}; is a shard missing?")


def _misfit(codes: str, stem: str, scheme: Scheme, form: Form, tensors: Mapping[str, Node]) -> str:
    """What is wrong with tensors that have the names of a quantised weight."""
    code = tensors[codes].code
    if code not in scheme.wants and not (code in FP8 and "FP8" in scheme.wants):
        return f"{codes} has scales, but is {code} and not {scheme.wants}; lazysd does not know this format"
    others = ", ".join(
        f"{stem + end} is {label(tensors[stem + end])}" for role, end in form.required.items() if role != "codes"
    )
    return f"{codes} is {label(tensors[codes])}, but {others}; lazysd does not know this format"


def decode(weight: Weight, tensors: Mapping[str, Node], code: str, settings: Settings) -> Node:
    """The plain weight, of dtype `code`, as a node. Raises LayoutError with its name where the tensors do not fit."""
    with _naming(weight):
        return weight.scheme.decode(weight.nodes(tensors), code, settings)


def dims(weight: Weight, tensors: Mapping[str, Node], settings: Settings) -> tuple[int, ...]:
    """The shape of the plain weight. Raises LayoutError with its name where the tensors do not fit."""
    with _naming(weight):
        return weight.scheme.dims(weight.nodes(tensors), settings)


@contextmanager
def _naming(weight: Weight) -> Iterator[None]:
    try:
        yield
    except (ValueError, LayoutError) as error:
        hint = "; block sizes come from weight_block_size in config.json" if "blocks of" in str(error) else ""
        raise LayoutError(f"{weight.key} ({weight.scheme.name}): {error}{hint}") from error


def parts_of(weights: Iterable[Weight]) -> Iterator[str]:
    """The keys of all tensors of some weights."""
    return (key for weight in weights for key in weight.parts.values())

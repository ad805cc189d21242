"""Lists of modules in quantization_config (what stays plain, what is meant), under the names after a conversion.

What an entry means is decided by the modules that it matches: an entry that matches the same ones under their new names
stays, any other gives way to those names.

Source: transformers 5.23 (`should_convert_module`), compressed-tensors 0.20 (`match_name`), ModelOpt (wildcards).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from ..facts import Facts
from ..graph.node import Node
from ..graph.walk import nodes
from ..layouts.choosing import Choice
from ..stores.strict_json import read_json, show
from .base import Weight, method_of
from .compressed import METHOD
from .registry import settings_of

STATED_IN = "hf_quant_config.json"  # ModelOpt's side file, which says what quantization_config says, or alone says it
SKIPPED = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "exclude")
MAPPED = ("quantized_layers",)  # of mixed precision: how each module is quantised
_PLACES = ("quantization_config", "compression_config")
_PLAIN = re.compile(r"[\w.\-]*")
# Literal text, classes, groups that do not repeat: what a hostile file cannot make run for ever.
_READABLE = re.compile(r"(?:(?:\\.|\[[^\[\]]*\]|[^\\\[\](){}*+?|])[*+?]?|\((?:\?:)?|\)|\|)*")
_MOST_WORK = 10**9
FUSED_FP8 = (  # measured: the fused names are none that it looks for when it decodes
    "fused FP8 experts: transformers 5.23 takes their codes for weights where it decodes as it loads, which it does "
    "without a GPU; per expert (--to hf) it reads them everywhere"
)
Test = Callable[[str], bool]
_NONE: frozenset[str] = frozenset()


class _Names:
    """The modules of one side of a conversion, those that are quantised or those that are not."""

    def __init__(self, tensors: Mapping[str, Node]):
        self.tensors = {key: node for key, node in tensors.items() if node.ndim >= 2 and not key.endswith(".bias")}
        self.known = {key: (_module(key), key) if _is_bare(key) else (_module(key),) for key in self.tensors}
        self.exact = frozenset(name for names in self.known.values() for name in names)

    def of(self, test: Test | str) -> frozenset[str]:
        """The keys of the modules that an entry matches; a name matches itself."""
        if isinstance(test, str):
            return frozenset(k for k, names in self.known.items() if test in names) if test in self.exact else _NONE
        return frozenset(key for key, names in self.known.items() if any(map(test, names)))


class _Moved:
    """Modules before a conversion and after it, and which are made of which."""

    def __init__(self, before: Mapping[str, Node], after: Mapping[str, Node]):
        self.here, self.there = _Names(before), _Names(after)

    @cached_property
    def goals(self) -> dict[str, frozenset[str]]:
        """Key of the source -> the keys that are made of it."""
        made: dict[int, set[str]] = {}
        for key, node in self.there.tensors.items():
            for leaf in _leaves(node):
                made.setdefault(id(leaf), set()).add(key)
        return {
            key: _NONE.union(*(made.get(id(leaf), ()) for leaf in _leaves(node)))
            for key, node in self.here.tensors.items()
        }


def _leaves(node: Node) -> list[Node]:
    return [part for part in nodes([node]) if not part.inputs] if node.inputs else [node]


def _module(key: str) -> str:
    return key.rpartition(".")[0]


def _is_bare(key: str) -> bool:
    """Whether a key may be meant by itself: a fused parameter of a module."""
    return not key.endswith(".weight")


def after(facts: Facts, choice: Choice, before: Mapping[str, Node], weights: Mapping[str, Weight], made: Any) -> Any:
    """What of the facts a conversion changes: config, config.json and remarks, as far as quantisation goes.

    Args:
        facts, choice: of the source; which conversion it was. What a caller stated is in its config, and not written.
        before: the plain weights of the source.
        weights: those that are quantised.
        made: what `before` was converted to.
    """
    config, files, remarks = choice.config, dict(facts.json_files), facts.remarks
    if weights:
        same = config == facts.config
        config, said = renamed(facts.config if same else config, before, weights, made)
        written = config if same else renamed(facts.config, before, weights, made)[0]
        if written is not facts.config:
            files["config.json"] = written or {}
        if (beside := stated_beside(facts)) is not None:
            there, also = renamed(_as_config(beside), before, weights, made)
            if (now := _as_stated(there or {}, beside)) != beside["quantization"]:
                files[STATED_IN] = {**beside, "quantization": now}
                said = (*said, *(text for text in also if text not in said))
        fused = (key for key, weight in weights.items() if weight.scheme.name == "fp8-blocks" and key not in made)
        if choice.target.name == "hf-fused" and next(fused, None) is not None:
            said = (*said, FUSED_FP8)
        remarks = tuple(dict.fromkeys((*remarks, *said)))
    return {"config": config, "json_files": files, "remarks": remarks}


def stated_beside(facts: Facts) -> dict[str, Any] | None:
    """What hf_quant_config.json says, read; None where there is none, or none with settings in it.

    Raises FormatError: a file of that name that is no JSON.
    """
    said = facts.json_files.get(STATED_IN)
    file = next((file for file in facts.side_files if file.name == STATED_IN), None)
    if said is None and file is not None:
        said = read_json(file, STATED_IN, constants=True)
    return said if said is not None and isinstance(said.get("quantization"), Mapping) else None


def _as_config(beside: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in hf_quant_config.json, read as ModelOpt reads it."""
    return {"quantization_config": {"quant_method": "modelopt", **beside["quantization"]}}


def _as_stated(config: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    return {name: said for name, said in config["quantization_config"].items() if name in beside["quantization"]}


def renamed(
    config: dict[str, Any] | None, before: Mapping[str, Node], quantised: Container[str], after: Mapping[str, Node]
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """(config with the lists of its quantization_config as they read after a conversion, remarks). Reads nothing.

    Args:
        config: of the source; comes back itself where nothing changes.
        before: the plain weights of the source.
        quantised: the keys of those that are quantised.
        after: what they were converted to.
    """
    settings = settings_of(config)
    lists = dict(_lists(settings))
    if config is None or not any(lists.values()) or before.keys() == after.keys():
        return config, ()
    plain, coded = _parted(before, quantised, after)
    remarks: list[str] = []
    said: dict[str, Any] = dict(settings)
    for path, entries in lists.items():
        made: dict[str, Any] = {}
        for entry in entries:
            meant, others = (plain, coded.there) if path[0] in SKIPPED else (coded, None)
            names, remark = _reread(entry, method_of(settings), meant, others)
            told = settings[path[0]][entry] if path == MAPPED else None
            if twice := [name for name in names if made.setdefault(name, told) != told]:
                remark = f"{show(twice[0])} is made of modules that are said to be quantised in several ways"
            remarks += [f"quantization_config, {'.'.join(path)}: {remark}"] if remark else []
        _put(said, path, made if path == MAPPED else list(made))
    return (_with(config, said) if said != settings else config), tuple(remarks)


def _parted(before: Mapping[str, Node], quantised: Container[str], after: Mapping[str, Node]) -> tuple[_Moved, _Moved]:
    """What is plain, and what is quantised: no tensor is made of both."""
    codes = {id(_first(node)) for key, node in before.items() if key in quantised}
    parts: tuple[dict[str, Node], ...] = ({}, {}, {}, {})
    for key, node in before.items():
        parts[key in quantised][key] = node
    for key, node in after.items():
        parts[2 + (id(_first(node)) in codes)][key] = node
    return _Moved(parts[0], parts[2]), _Moved(parts[1], parts[3])


def _first(node: Node) -> Node:
    while node.inputs:
        node = node.inputs[0]
    return node


def _lists(settings: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """(where it stands, its entries) of every list of modules."""
    for name in SKIPPED:
        if _is_list(settings.get(name)):
            yield (name,), settings[name]
    if isinstance(settings.get(MAPPED[0]), Mapping):
        yield MAPPED, list(settings[MAPPED[0]])
    groups = settings.get("config_groups")
    for name, group in groups.items() if isinstance(groups, Mapping) else ():
        if isinstance(group, Mapping) and _is_list(group.get("targets")):
            yield ("config_groups", name, "targets"), group["targets"]


def _is_list(said: Any) -> bool:
    return isinstance(said, list) and all(isinstance(entry, str) for entry in said)


def _reread(entry: str, method: str | None, moved: _Moved, others: _Names | None) -> tuple[list[str], str]:
    """(the entries that now mean what one meant, a remark where that is not certain).

    `others`: modules that no entry may come to mean.
    """
    test = _test(entry, method, moved.here)
    if test is None:
        return [entry], f"{show(entry)} is not read as a pattern here, and modules have other names now; look at it"
    before = moved.here.of(test)
    wanted = _NONE.union(*(moved.goals[key] for key in before))
    if moved.there.of(test) == wanted or not before:
        stray = others.of(test) if others is not None else _NONE
        return [entry], f"{show(entry)} means {show(min(stray))} as well, which is quantised" if stray else ""
    names = sorted({_module(key) for key in wanted})
    spelt = "" if _PLAIN.fullmatch(entry) else f"{show(entry)} is spelt out: {len(names)} modules under their new names"
    return names, spelt


def _test(entry: str, method: str | None, here: _Names) -> Test | str | None:
    """Whether an entry means a module, as the programs of a method read it; None where it is not evaluated."""
    if method == METHOD:
        if not entry.startswith("re:"):
            return entry
        pattern = entry.removeprefix("re:")
    elif method == "modelopt":
        return lambda name: fnmatchcase(name, entry) or name.startswith(entry + ".")
    elif _PLAIN.fullmatch(entry):
        return lambda name: name.endswith(entry) or name.startswith(entry + ".")
    else:
        pattern = rf"(?:{entry})(?:(?<=\.)|(?=\.|$))"
    longest = max(map(len, here.known), default=0)
    repeats = len(re.findall(r"(?<!\\d)[*+]", entry))
    if not _READABLE.fullmatch(entry) or len(here.known) * longest**repeats > _MOST_WORK:
        return None
    try:
        match = re.compile(pattern).match
    except (re.error, OverflowError):
        return None
    if method == METHOD:
        return lambda name: match(name) is not None
    return lambda name: name.endswith(entry) or match(name) is not None


def _put(table: dict[str, Any], path: tuple[str, ...], entries: Any) -> None:
    """The entries at a place of nested tables, of which none but copies are changed."""
    for name in path[:-1]:
        table[name] = dict(table[name])
        table = table[name]
    table[path[-1]] = entries


def _with(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config with other settings where it has its own: at its top, or in the config of a part."""
    name = next((name for name in _PLACES if name in config), None)
    if name is not None:
        return {**config, name: dict(settings)}
    part = next(key for key, said in config.items() if isinstance(said, Mapping) and any(n in said for n in _PLACES))
    return {**config, part: _with(config[part], settings)}

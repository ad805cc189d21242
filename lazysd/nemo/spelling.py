"""Other families in Qwen3-MoE's terms: keys outside the grouped experts, by the renames of the family's table."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from .. import layouts
from ..errors import LayoutError
from ..graph.rewrite import cast
from ..layouts import Layout, Rule, apply
from ..tensor.wrapping import as_lazy

_FP32 = "._fp32_params."  # NeMo keeps what stands below in float32, whatever the checkpoint has
_UNTOUCHED = "... -> ..."


@cache
def _renames(family: str, more: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return (*more, *(rule for rule in layouts.get("nemo", family).rules if rule.rename))


def renamed(key: str, value: Any, family: str, more: tuple[Rule, ...], forward: bool) -> tuple[str, Any]:
    """A key and its value in NeMo's spelling (forward) or in Hugging Face's; the same objects where no rule speaks."""
    for rule in _renames(family, more):
        end = rule.ends(forward)
        fields = end.template.match(key)
        if fields is None:
            continue
        target = end.target.format(fields)
        if rule.axes != _UNTOUCHED and value.ndim == sum(map(len, end.side.groups)):
            made = apply({key: as_lazy(value)}, Layout("nemo", family, (rule,)), forward, {})
            return target, made[target]
        if _FP32 in target and _is_narrow(value):
            return target, cast(as_lazy(value), "F32")
        return target, value
    return key, value


def _is_narrow(value: Any) -> bool:
    return bool(value.dtype.is_floating_point and value.dtype.itemsize < 4)


def native(tensors: Mapping[str, Any], family: str, more: tuple[Rule, ...]) -> dict[str, Any]:
    """A state dict with the keys that NeMo has, experts still one by one. LayoutError: two keys become one."""
    return _all(tensors, family, more, True)


def hub(tensors: Mapping[str, Any], family: str, more: tuple[Rule, ...]) -> dict[str, Any]:
    """The keys that Hugging Face's files have. LayoutError: two keys become one."""
    return _all(tensors, family, more, False)


def _all(tensors: Mapping[str, Any], family: str, more: tuple[Rule, ...], forward: bool) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in tensors.items():
        name, spelt = renamed(key, value, family, more, forward)
        if name in made:
            raise LayoutError(f"{key} and another key both become {name}; leave one of them out")
        made[name] = spelt
    return made

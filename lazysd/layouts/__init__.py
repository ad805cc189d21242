"""Layouts as tables of axis patterns, and their registry: names(), get(name), register(Layout), load(file)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import moved
from .._lazily import attributes

if TYPE_CHECKING:
    from ..errors import LayoutError
    from .choosing import Choice, choose
    from .converting import convert
    from .detect import Found, find
    from .explaining import dense_layout, explain
    from .family import Dialect, Experts, Family, Speech
    from .parsing import parse_axes, parse_key
    from .registry import (
        all_layouts,
        dialects,
        families,
        get,
        names,
        register,
        register_dialect,
        register_family,
        resolve,
    )
    from .rewriting import apply
    from .rule import Layout, Rule
    from .tables import load

__getattr__ = attributes(
    __name__,
    {
        "Choice": ".choosing",
        "Dialect": ".family",
        "Experts": ".family",
        "Family": ".family",
        "Found": ".detect",
        "Layout": ".rule",
        "LayoutError": "..errors",
        "Rule": ".rule",
        "Speech": ".family",
        "all_layouts": ".registry",
        "apply": ".rewriting",
        "choose": ".choosing",
        "convert": ".converting",
        "dense_layout": ".explaining",
        "dialects": ".registry",
        "explain": ".explaining",
        "families": ".registry",
        "find": ".detect",
        "get": ".registry",
        "load": ".tables",
        "names": ".registry",
        "parse_axes": ".parsing",
        "parse_key": ".parsing",
        "register": ".registry",
        "register_dialect": ".registry",
        "register_family": ".registry",
        "resolve": ".registry",
    },
    moved.resolve,
)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "Choice",
    "Dialect",
    "Experts",
    "Family",
    "Found",
    "Layout",
    "LayoutError",
    "Rule",
    "Speech",
    "all_layouts",
    "apply",
    "choose",
    "convert",
    "dense_layout",
    "dialects",
    "explain",
    "families",
    "find",
    "get",
    "load",
    "names",
    "parse_axes",
    "parse_key",
    "register",
    "register_dialect",
    "register_family",
    "resolve",
]

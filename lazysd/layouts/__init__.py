"""Layouts as tables of axis patterns, and their registry: names(), get(name), register(Layout), load(file)."""

from __future__ import annotations

from typing import Any

from .. import moved
from ..errors import LayoutError
from .choosing import Choice, choose
from .converting import convert
from .detect import Found, find
from .explaining import explain
from .family import Dialect, Experts, Family, Speech
from .keys import parse_key
from .pattern import parse_axes
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


def __getattr__(name: str) -> Any:
    return moved.resolve(__name__, name)


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

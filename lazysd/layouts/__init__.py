"""Layouts as tables of axis patterns, and their registry: names(), get(name), register(Layout), load(file)."""

from __future__ import annotations

from ..errors import LayoutError
from .adapter import AdapterConfig
from .choosing import Choice, choose
from .converting import convert, convert_adapter
from .detect import Found, find
from .family import Dialect, Experts, Family, Speech
from .generation import check_stated, decider, detect
from .keys import parse_key
from .lora import GENERATIONS
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
from .rule import Layout, LoraNames, Rule
from .tables import load

__all__ = [
    "GENERATIONS",
    "AdapterConfig",
    "Choice",
    "Dialect",
    "Experts",
    "Family",
    "Found",
    "Layout",
    "LayoutError",
    "LoraNames",
    "Rule",
    "Speech",
    "all_layouts",
    "apply",
    "check_stated",
    "choose",
    "convert",
    "convert_adapter",
    "decider",
    "detect",
    "dialects",
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

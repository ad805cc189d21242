"""Layouts as tables of axis patterns, and their registry: names(), get(name), register(Layout)."""

from __future__ import annotations

from ..errors import LayoutError
from .adapter import AdapterConfig
from .converting import convert, convert_adapter
from .detect import detect
from .generation import check_stated
from .lora import GENERATIONS
from .pattern import parse_axes, parse_key
from .registry import all_layouts, get, names, register, resolve
from .rewriting import apply
from .rule import Layout, LoraNames, Rule

__all__ = [
    "GENERATIONS",
    "AdapterConfig",
    "Layout",
    "LayoutError",
    "LoraNames",
    "Rule",
    "all_layouts",
    "apply",
    "check_stated",
    "convert",
    "convert_adapter",
    "detect",
    "get",
    "names",
    "parse_axes",
    "parse_key",
    "register",
    "resolve",
]

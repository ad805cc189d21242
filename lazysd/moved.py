"""Public names by the paths that they once had: found when somebody asks for them, so that old imports keep working."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_CONFIG, _GENERATION, _TABLES = "lazysd.peft.config", "lazysd.peft.generation", "lazysd.peft.tables"
MOVED = {  # old module -> name -> the module that has it now; a name that ends in a dot was a module itself
    "lazysd.layouts": {
        "AdapterConfig": _CONFIG,
        "LoraNames": "lazysd.peft.names",
        "GENERATIONS": _TABLES,
        "convert_adapter": "lazysd.peft.converting",
        **dict.fromkeys(("check_stated", "decider"), _GENERATION),
        "adapter.": _CONFIG,
        "generation.": _GENERATION,
        "lora.": _TABLES,
    },
}


def resolve(module: str, name: str) -> Any:
    """What `module` once had as `name`; a DeprecationWarning says where it is now. AttributeError: it never had it."""
    known = MOVED[module]
    if name not in known and f"{name}." not in known:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    is_module = name not in known
    place = known[f"{name}." if is_module else name]
    there = place if is_module else f"{place}.{name}"
    warnings.warn(f"{module}.{name} is {there} since lazysd 0.2", DeprecationWarning, stacklevel=3)
    found = importlib.import_module(place)
    return found if is_module else getattr(found, name)

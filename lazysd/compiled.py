"""The parts of the package that are compiled, where a compiler was when it was installed; everything works without."""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any

SWITCH = "LAZYSD_KERNEL"  # "off": do without, for instance to find out whether it is at fault


@cache
def built(name: str, version: int) -> Any:
    """A compiled module; None where it was not built, has another interface, or nobody wants any."""
    if os.environ.get(SWITCH, "on").lower() == "off":
        return None
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    return module if version == module.VERSION else None

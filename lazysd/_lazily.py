"""Names of a package that are imported when somebody first asks for them, so that importing it costs little."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attributes(
    package: str, homes: Mapping[str, str], otherwise: Callable[[str, str], Any] | None = None
) -> Callable[[str], Any]:
    """A module's `__getattr__`: names from the modules that they live in, and the package's own files by their names.

    Args:
        package: the package's name.
        homes: name -> module relative to the package, ".opening".
        otherwise: called as otherwise(package, name) for names that are neither.
    """

    def find(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name], package), name)
        elif name.startswith("_"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        else:
            try:
                value = importlib.import_module(f".{name}", package)
            except ModuleNotFoundError as error:
                if error.name != f"{package}.{name}":
                    raise
                if otherwise is not None:
                    return otherwise(package, name)
                raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        setattr(sys.modules[package], name, value)
        return value

    return find

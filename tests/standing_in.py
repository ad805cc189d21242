"""Single modules of large packages, imported without the rest: parents are not run, what is absent is stood in for."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


@contextmanager
def standing_in(packages: Iterable[str], members: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """While it lasts, the packages are importable without their `__init__`, and other modules have these names only.

    What is imported of them meanwhile is forgotten at the end.

    Args:
        packages: installed packages, dotted, parents first.
        members: module -> its names.
    """
    made: dict[str, dict[str, Any]] = {}
    for name in packages:
        top, *inner = name.split(".")
        spec = importlib.util.find_spec(top)
        assert spec is not None
        assert spec.submodule_search_locations
        made[name] = {"__path__": [str(Path(spec.submodule_search_locations[0], *inner))]}
    for name, names in members.items():
        made[name] = {**made.get(name, {}), **names}
    tops = {name.split(".")[0] for name in made}
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in tops}
    for name, names in made.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(names)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in tops]:
            del sys.modules[name]
        sys.modules.update(before)

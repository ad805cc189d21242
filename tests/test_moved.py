"""Names that have moved are found under their old paths, and nothing else is."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from lazysd import moved

NAMES = [(module, name.rstrip(".")) for module, known in moved.MOVED.items() for name in known]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_old_paths_lead_to_the_same_objects(module: str, name: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"{name} is lazysd\.") as warned:
        found = getattr(importlib.import_module(module), name)
    place = str(warned[0].message).split(" is ")[1].split(" since ")[0]
    parent, _, last = place.rpartition(".")
    try:
        expected = getattr(importlib.import_module(parent), last)
    except AttributeError:
        expected = importlib.import_module(place)
    assert found is expected
    assert warned[0].filename == __file__  # the warning points at who imports


def test_what_never_was_is_no_attribute() -> None:
    layouts = importlib.import_module("lazysd.layouts")
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        layouts.Nothing  # noqa: B018
    assert not hasattr(layouts, "__wrapped__")


def test_importing_from_an_old_path() -> None:
    code = "from lazysd.layouts import AdapterConfig, LoraNames, lora; print(AdapterConfig.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "lazysd.peft.config"

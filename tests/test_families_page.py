"""docs/families.md is what the registry says, and what it calls tested is tested."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from families_page import mark, page  # noqa: E402 - a folder of scripts is no package

from lazysd.layouts import drawing, registry  # noqa: E402


def test_the_page_is_current() -> None:
    current = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert current == page(), "run: python scripts/families_page.py > docs/families.md"


def claimed(layout: str) -> set[str]:
    """Families whose layout of that name is said to be held against the real program."""
    found = {name: drawing.of_family(name)["layouts"] for name in registry.family_names()}
    return {name for name, known in found.items() if layout in known and mark(known[layout]["source"]) == "●"}


def test_what_is_said_of_transformers_is_tested() -> None:
    pytest.importorskip("transformers")
    from tiny_moe import MODELS

    built = {registry.family_of(name) for name in MODELS} | {"llama"}  # dense: tests/test_dense.py
    assert claimed("hf") | claimed("hf-fused") <= built


def test_what_is_said_of_nemo_is_tested() -> None:
    pytest.importorskip("nemo_automodel")
    pytest.importorskip("transformers")
    from test_families_nemo import ADAPTERS

    assert claimed("nemo") <= {registry.family_of(name) for name in ADAPTERS}


def test_what_is_said_of_torchtitan_is_tested() -> None:
    pytest.importorskip("torchtitan")
    from test_families_torchtitan import ADAPTERS

    assert claimed("torchtitan") <= set(ADAPTERS)

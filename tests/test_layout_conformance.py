"""The public suite of families and dialects: members pass, and tables that are wrong in one way each fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_layout_tables import TEN_LINES

import lazysd
from lazysd.errors import LayoutError
from lazysd.layouts import Dialect, Experts, Family, Layout, Rule, Speech, registry
from lazysd.testing.conformance.layouts import DialectSuite, FamilySuite


@pytest.fixture(autouse=True)
def own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    registry.families(), registry.dialects()
    for table in ("_LAYOUTS", "_FAMILIES", "_DIALECTS", "_DERIVED"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))


class TestQwen3Moe(FamilySuite):
    family = "qwen3_moe"


class TestGptOss(FamilySuite):
    """Stacked on disk, interleaved, with biases."""

    family = "gpt_oss"


class TestErnieVL(FamilySuite):
    """Two stacks in one list."""

    family = "ernie4_5_vl_moe"
    max_examples = 4


class TestTenLines(FamilySuite):
    """The family of docs/layouts.md."""

    family = "my_moe"
    max_examples = 4

    @pytest.fixture(autouse=True)
    def loaded(self, own_tables: None, tmp_path: Path) -> None:
        (tmp_path / "mine.toml").write_text(TEN_LINES)
        lazysd.layouts.load(tmp_path / "mine.toml")


class TestNemo(DialectSuite):
    dialect = "nemo"
    max_examples = 1


class TestMegatron(DialectSuite):
    dialect = "megatron"
    max_examples = 3


def suite_of(name: str, kind: type = FamilySuite) -> FamilySuite | DialectSuite:
    found = kind()
    setattr(found, "family" if kind is FamilySuite else "dialect", name)
    return found


def half_a_layout() -> Callable[[], object]:
    """A layout that has no place for gate and up."""
    key = "{prefix}layers.{layer}.mlp.experts.{e}.down_proj.weight"
    rule = Rule(key, "{prefix}layers.{layer}.mlp.experts.all", "[e] h i -> e h i")
    lazysd.layouts.register(Layout("half", "qwen3_moe", (rule,), "only down"))
    return suite_of("qwen3_moe").test_there_and_back


def nothing_said() -> Callable[[], object]:
    lazysd.layouts.register_family(Family("mute", ("mute",), Experts(), {"own": Speech(form={
        "gate_up": ("a", "e g i h"), "down": ("b", "e h i")
    })}))  # fmt: skip
    return suite_of("mute").test_each_layout_says_what_it_is  # type: ignore[union-attr]


def a_dialect_nobody_speaks() -> Callable[[], object]:
    lazysd.layouts.register_dialect(Dialect("silent", "of nobody", form=None, everywhere=False, unless="not said"))
    return suite_of("silent", DialectSuite).test_some_family_speaks_it  # type: ignore[union-attr]


def a_dialect_without_a_word() -> Callable[[], object]:
    lazysd.layouts.register_dialect(Dialect("blank", "", form=None))
    return suite_of("blank", DialectSuite).test_it_says_what_it_is  # type: ignore[union-attr]


def a_family_that_does_not_say_why() -> Callable[[], object]:
    lazysd.layouts.register_family(Family("curt", ("curt",), Experts(), {"nemo": ""}))
    return suite_of("nemo", DialectSuite).test_a_family_without_it_says_why  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "broken",
    [
        half_a_layout, nothing_said, a_dialect_nobody_speaks,
        a_dialect_without_a_word, a_family_that_does_not_say_why,
    ],
    ids=lambda broken: broken.__name__,
)  # fmt: skip
def test_what_is_wrong_fails(broken: Callable[[], Callable[[], object]]) -> None:
    with pytest.raises((AssertionError, LayoutError, pytest.fail.Exception)):
        broken()()

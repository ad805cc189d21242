"""Patterns of adapter_config.json: Python's answers (which are PEFT's) for regular ones, in bounded time for all."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import not_forever
from peft.utils.other import get_pattern_key

import lazysd.peft.matching as matching
from lazysd.errors import LayoutError
from lazysd.peft.config import AdapterConfig
from lazysd.peft.matching import matches

FOLLOWED = ("*", "+", "?", "{2}", "{1,3}", "*?", "{2,}")
NAMES = ["model.layers.0.mlp.experts.down_proj", "model.layers.10.self_attn.q_proj", "q_proj", "", "a\n", "aaab", "x.a"]
PATTERNS = [
    *(
        "q_proj",
        "down_proj",
        "self_attn.q_proj",
        r"model\.layers\.\d+\.mlp",
        r"layers\.(0|1)\..*",
        r".*\.q_proj",
        "a+b",
    ),
    *(
        "^q_proj",
        r"(a|b)*",
        "[^q]*",
        r"layers.1?0.*",
        "x{0}q_proj",
        "q{1,2}_proj",
        r"\bq_proj\b",
        "",
        "a",
        r"[\d.]+",
        ".",
    ),
    *(
        "(a+)+b",
        "(?:a|aa)+b",
        r"(\w+\.)+q_proj",
        "a{2,}b?",
        "(a*)*",
        "(|a)+",
        r"\w*\W*",
        "q_proj$",
        r"a\Z",
        r"[a-c\s]*b",
    ),
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("steps", [0, 10**12])
def test_the_same_as_peft(pattern: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MAX_STEPS", steps)
    for name in NAMES:
        assert matches(pattern, name) == (re.match(rf"(.*\.)?({pattern})$", name) is not None), name
        if matches(pattern, name) and pattern != name:
            assert get_pattern_key([pattern], name) == pattern


atoms = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\w", "x", r"\d", "$", "^", r"\b"])
expressions = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map("".join)
        | st.tuples(inner, st.sampled_from(FOLLOWED)).map(lambda t: f"({t[0]}){t[1]}")
        | st.lists(inner, min_size=2, max_size=3).map(lambda t: "(?:" + "|".join(t) + ")")
    ),
    max_leaves=6,
)


@given(expressions, st.text("abx.1", max_size=7))
def test_any_regular_expression(pattern: str, name: str) -> None:
    wanted = re.match(rf"(.*\.)?({pattern})$", name) is not None
    assert matches(pattern, name) == wanted
    assert matching._followed(pattern, name) == wanted


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|aa)+$b",
        "(a*)*b",
        "(.*)*x",
        "(a|a)" * 60 + "b",
        ".*.*.*.*.*.*.*.*b",
        "(?:a{0,40}){0,40}b",
        r"(\w+\s?)+$x",
    ],
)
def test_hostile_patterns_take_no_time(pattern: str) -> None:
    with not_forever():  # backtracking takes years
        try:
            assert not matches(pattern, "model." + "a" * 300)
        except LayoutError as error:
            assert "states" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "is no regular expression"),
        ("a" * 5000, "5000 characters"),
        ("(" * 900 + ")" * 900, "is no regular expression|states"),
        ("(?i)q", "is no regular expression"),
        (r"((a+)+)\3x", "groupref"),
        ("(a+)+(?=b)", "assert"),
        ("((a{1000}){1000}){1000}", "states"),
        ("a{99999999999999999999}", "is no regular expression"),
    ],
)
def test_what_cannot_be_matched_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        matches(pattern, "model." + "a" * 1000)


def test_what_was_found_out_of_a_pattern_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of many layers and experts look alike: they take a few moves in all, however many they are."""
    matching._states.cache_clear()
    pattern = r".*\.layers\.\d+\.mlp\.experts\.\d+\..*_proj"
    names = [f"model.layers.{k}.mlp.experts.{e}.up_proj" for k in range(20) for e in range(100)]
    assert all(matching.is_followed(pattern, name) and matches(pattern, name) for name in names)
    assert matching._states(pattern)[0]._num_moves < 20_000  # 2,000 names of 40 characters
    matching._states.cache_clear()
    monkeypatch.setattr(matching, "MAX_MOVES", 100)
    with pytest.raises(LayoutError, match="cannot be matched in bounded time; name the modules instead"):
        matches(pattern, names[0])


def test_there_are_not_too_many_of_them() -> None:
    slow = {f".*.*.*.*{number}x": 3 for number in range(matching.MAX_FOLLOWED + 1)}
    quick = {f"{number}x": 3 for number in range(1000)}
    assert AdapterConfig({"r": 8, "rank_pattern": quick}).rank("model.layers.0.q_proj") == 8
    with pytest.raises(LayoutError, match=r"adapter_config\.json: more than 64 patterns cannot be matched at once"):
        AdapterConfig({"r": 8, "rank_pattern": slow}).rank("model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize("pattern", ["q_proj", r"layers\.\d+\.mlp", "(gate|up)_proj", r"experts\.[0-9]+\.(a|b)?"])
def test_usual_patterns_are_left_to_python(pattern: str) -> None:
    assert not matching.is_followed(pattern, "model.layers.10.self_attn.experts.100.q_proj")

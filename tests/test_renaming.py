"""Patterns of --rename: what each sign stands for, in bounded time whatever keys there are."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from patience import not_forever

from lazysd.renaming import _matcher

plain_patterns = st.text("ab*?", min_size=1, max_size=7)


@given(plain_patterns, st.text("ab", max_size=9))
def test_signs_take_what_a_plain_expression_gives_them(pattern: str, key: str) -> None:
    plain = "".join({"*": "(.*?)", "?": "(.)"}.get(char, char) for char in pattern)
    found, wanted = _matcher(pattern).fullmatch(key), re.fullmatch(plain, key)
    assert (found and found.groups()) == (wanted and wanted.groups())


def test_a_hostile_key_takes_no_time() -> None:
    with not_forever():  # backtracking takes years
        assert _matcher("*a*a*a*a*a*a*a*a*ab").fullmatch("a" * 2000) is None

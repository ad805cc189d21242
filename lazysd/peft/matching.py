"""Which module a key of rank_pattern or alpha_pattern means: PEFT's regular expressions, in bounded time.

adapter_config.json comes from strangers, and backtracking over `(a+)+b` takes longer than anybody waits. An expression
that cannot backtrack for long goes to Python's matcher; any other is followed through all its states at once, and what
was found out about them is remembered, up to a limit. Both answer the same for what is a regular language; the rest is
refused by name.
"""

from __future__ import annotations

import importlib
import re
from functools import lru_cache
from typing import Any, NamedTuple

from ..errors import LayoutError

MAX_PATTERN = 2000  # characters
MAX_STATES = 4000  # of an expression written out, its counted repeats included
MAX_FOLLOWED = 64  # expressions of one file that Python's matcher is not asked about
MAX_MOVES = 300_000  # from states to states that are worked out of one expression; each is remembered
MAX_STEPS = 200_000  # that backtracking may take, at most, for Python's matcher to be asked

_parser: Any = importlib.import_module("re._parser")
_MAXREPEAT = int(_parser.MAXREPEAT)


def is_followed(pattern: str, name: str) -> bool:
    """Whether an expression could backtrack for long, so that it is followed through its states instead."""
    return _compiled(pattern).steps_of(len(name)) > MAX_STEPS


def matches(pattern: str, name: str) -> bool:
    """Whether PEFT takes a pattern for the module `name`: for the whole name, or for its end after a dot.

    Raises LayoutError for what is no regular expression, or one that cannot be matched in bounded time (lookaround,
    references to groups, more than MAX_STATES states).

    Source: peft 0.21.2, `get_pattern_key`.
    """
    if is_followed(pattern, name):
        return _followed(pattern, name)
    return _compiled(pattern).plain.match(name) is not None


class _Program(NamedTuple):
    """An expression for PEFT's question, ready to be matched in either way."""

    pattern: str
    plain: re.Pattern[str]
    tree: Any  # what Python's own parser makes of it
    ways: int  # alternatives multiplied
    repeats: int  # repeats of no fixed count, none inside another; -1 where one is

    def steps_of(self, length: int) -> int:
        """An upper bound for what backtracking through a name of that length takes."""
        return MAX_STEPS + 1 if self.repeats < 0 else int(self.ways * (length + 1) ** (self.repeats + 1))


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> _Program:
    if len(pattern) > MAX_PATTERN:
        raise LayoutError(
            f"pattern {pattern[:40]!r}… is no regular expression to be matched in bounded time: it has "
            f"{len(pattern)} characters, expected at most {MAX_PATTERN}"
        )
    whole = rf"(.*\.)?({pattern})$"
    try:
        plain, tree = re.compile(whole), _parser.parse(whole)
        ways, repeats = _cost(tree)
    except (re.error, OverflowError, RecursionError) as error:
        raise LayoutError(f"pattern {pattern!r} is no regular expression: {error}") from error
    return _Program(pattern, plain, tree, ways, repeats)


def _children(op: str, value: Any) -> list[Any]:
    """The expressions inside one item of a parsed expression."""
    if op == "BRANCH":
        return list(value[1])
    if op in ("SUBPATTERN", "MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT", "ASSERT", "ASSERT_NOT"):
        return [value[-1]]
    if op == "ATOMIC_GROUP":
        return [value]
    return [part for part in value[1:] if part is not None] if op == "GROUPREF_EXISTS" else []


def _cost(tree: Any) -> tuple[int, int]:
    """(ways, repeats) of _Program."""
    ways, repeats = 1, 0
    todo: list[tuple[Any, bool]] = [(tree, False)]
    while todo:
        items, repeated = todo.pop()
        for code, value in items:
            op = str(code)
            inside = repeated
            if op == "BRANCH":
                ways = min(ways * len(value[1]), MAX_STEPS + 1)
                if repeated:
                    return ways, -1
            elif op.endswith("_REPEAT"):
                if repeated:
                    return ways, -1
                if value[1] == 1:  # there or not
                    ways = min(2 * ways, MAX_STEPS + 1)
                else:
                    repeats, inside = repeats + (value[0] != value[1]), True
            todo.extend((child, inside) for child in _children(op, value))
    return ways, repeats - 1  # the one before the last dot is there in every question


class _States:
    """An expression as states: `edges` consume a character that `test` accepts, `free` go on without one."""

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.edges: list[tuple[Any, int] | None] = []
        self.free: list[list[tuple[str, int]]] = []  # (condition, where): "", or a place in the text
        self._reached: dict[tuple[frozenset[int], frozenset[str]], frozenset[int]] = {}
        self._after: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._num_moves = 0

    def new(self) -> int:
        if len(self.edges) >= MAX_STATES:
            raise LayoutError(f"pattern {self.pattern!r} has more than {MAX_STATES} states; write it shorter")
        self.edges.append(None)
        self.free.append([])
        return len(self.edges) - 1

    def add(self, items: Any, start: int) -> int:
        """States for a sequence that begins at `start`; where it ends. As deep as the parser, which came before."""
        for code, value in items:
            start = self._item(str(code), value, start)
        return start

    def _item(self, op: str, value: Any, start: int) -> int:
        end = self.new()
        if op in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            self.edges[start] = (_accepting(op, value), end)
        elif op == "AT" and str(value) in _PLACES:
            self.free[start].append((str(value), end))
        elif op == "BRANCH":
            for branch in value[1]:
                first = self.new()
                self.free[start].append(("", first))
                self.free[self.add(branch, first)].append(("", end))
        elif op == "SUBPATTERN" and not value[1] and not value[2]:
            self.free[self.add(value[3], start)].append(("", end))
        elif op in ("MAX_REPEAT", "MIN_REPEAT"):
            self._repeat(value, start, end)
        else:
            raise LayoutError(
                f"pattern {self.pattern!r} cannot be matched in bounded time ({op.lower().replace('_', ' ')}); "
                "write it without lookaround, flags and references, or name the modules"
            )
        return end

    def _repeat(self, value: Any, start: int, end: int) -> None:
        least, most, items = value
        at = start
        for _ in range(least):
            at = self._fresh(self.add(items, at))
        if most == _MAXREPEAT:
            loop = self._fresh(at)
            self.free[loop].append(("", end))
            first = self._fresh(loop)
            self.free[self.add(items, first)].append(("", loop))
            return
        for _ in range(most - least):
            self.free[at].append(("", end))
            at = self._fresh(self.add(items, self._fresh(at)))
        self.free[at].append(("", end))

    def reached(self, here: frozenset[int], places: frozenset[str]) -> frozenset[int]:
        """The states that can be reached without a character, where these places in the text are."""
        if (here, places) not in self._reached:
            found, todo = set(here), list(here)
            while todo:
                for place, there in self.free[todo.pop()]:
                    if there not in found and (not place or place in places):
                        found.add(there)
                        todo.append(there)
            self._count(len(found))
            self._reached[here, places] = frozenset(found)
        return self._reached[here, places]

    def after(self, here: frozenset[int], char: str) -> frozenset[int]:
        """The states after one more character."""
        if (here, char) not in self._after:
            self._count(len(here))
            edges = (self.edges[state] for state in here)
            self._after[here, char] = frozenset(edge[1] for edge in edges if edge is not None and edge[0](char))
        return self._after[here, char]

    def _count(self, num_moves: int) -> None:
        self._num_moves += num_moves
        if self._num_moves > MAX_MOVES:
            raise LayoutError(f"pattern {self.pattern!r} cannot be matched in bounded time; name the modules instead")

    def _fresh(self, at: int) -> int:
        """A state of its own after `at`: one that has an edge already takes no other."""
        new = self.new()
        self.free[at].append(("", new))
        return new


_PLACES = ("AT_BEGINNING", "AT_BEGINNING_STRING", "AT_END", "AT_END_STRING", "AT_BOUNDARY", "AT_NON_BOUNDARY")


def _accepting(op: str, value: Any) -> Any:
    """A function that says whether one character is taken: Python's matcher, asked for one character."""
    if op == "ANY":
        return lambda char: char != "\n"
    if op in ("LITERAL", "NOT_LITERAL"):
        wanted, same = chr(value), op == "LITERAL"
        return lambda char: (char == wanted) is same
    state = _parser.State()
    one = _parser.SubPattern(state, [(_parser.IN, value)])
    compiled = importlib.import_module("re._compiler").compile(one, 0)
    return lambda char: compiled.match(char) is not None


def _places(name: str, at: int) -> frozenset[str]:
    """Which places in the text position `at` is."""
    before, after = (0 <= k < len(name) and bool(re.match(r"\w", name[k])) for k in (at - 1, at))
    found = {"AT_BOUNDARY" if before != after else "AT_NON_BOUNDARY"}
    if at == 0:
        found |= {"AT_BEGINNING", "AT_BEGINNING_STRING"}
    if at == len(name):
        found |= {"AT_END", "AT_END_STRING"}
    elif at == len(name) - 1 and name[at] == "\n":
        found.add("AT_END")
    return frozenset(found)


@lru_cache(maxsize=MAX_FOLLOWED)
def _states(pattern: str) -> tuple[_States, int]:
    states = _States(pattern)
    return states, states.add(_compiled(pattern).tree, states.new())


def _followed(pattern: str, name: str) -> bool:
    """Every state that can be reached after each character; whether the last one is among them at some point."""
    states, last = _states(pattern)
    here = frozenset((0,))
    for at in range(len(name) + 1):
        here = states.reached(here, _places(name, at))
        if last in here:
            return True
        if at < len(name):
            here = states.after(here, name[at])
    return False

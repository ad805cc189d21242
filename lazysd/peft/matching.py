"""Which module a key of rank_pattern or alpha_pattern means: PEFT's regular expressions, in bounded time.

adapter_config.json comes from strangers, and backtracking over `(a+)+b` takes longer than anybody waits. An expression
that cannot backtrack for long goes to Python's matcher; any other is followed through all its states at once, which
takes the product of both lengths. Both answer the same for what is a regular language; the rest is refused by name.
"""

from __future__ import annotations

import importlib
import re
from functools import lru_cache
from typing import Any, NamedTuple

from ..errors import LayoutError

MAX_PATTERN = 2000  # characters
MAX_STATES = 4000  # of an expression written out, its counted repeats included
MAX_STEPS = 200_000  # that backtracking may take, at most, for Python's matcher to be asked

_parser: Any = importlib.import_module("re._parser")
_MAXREPEAT = int(_parser.MAXREPEAT)


def matches(pattern: str, name: str) -> bool:
    """Whether PEFT takes a pattern for the module `name`: for the whole name, or for its end after a dot.

    Raises LayoutError for what is no regular expression, or one that cannot be matched in bounded time (lookaround,
    references to groups, more than MAX_STATES states).

    Source: peft 0.21.2, `get_pattern_key`.
    """
    program = _compiled(pattern)
    if program.steps_of(len(name)) <= MAX_STEPS:
        return program.plain.match(name) is not None
    return _followed(program, name)


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
                if value[0] != value[1] or value[1] > 1:
                    repeats, inside = repeats + (value[0] != value[1]), True
            todo.extend((child, inside) for child in _children(op, value))
    return ways, repeats - 1  # the one before the last dot is there in every question


class _States:
    """An expression as states: `edges` consume a character that `test` accepts, `free` go on without one."""

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.edges: list[tuple[Any, int] | None] = []
        self.free: list[list[tuple[str, int]]] = []  # (condition, where): "", or a place in the text

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


def _holds(place: str, name: str, at: int) -> bool:
    """Whether a place in the text is such a one."""
    if place in ("", "AT_BEGINNING", "AT_BEGINNING_STRING"):
        return not place or at == 0
    if place in ("AT_END", "AT_END_STRING"):
        return at == len(name) or (place == "AT_END" and at == len(name) - 1 and name[at] == "\n")
    before, after = (0 <= k < len(name) and bool(re.match(r"\w", name[k])) for k in (at - 1, at))
    return (before != after) is (place == "AT_BOUNDARY")


@lru_cache(maxsize=256)
def _states(pattern: str) -> tuple[_States, int]:
    states = _States(pattern)
    return states, states.add(_compiled(pattern).tree, states.new())


def _followed(program: _Program, name: str) -> bool:
    """Every state that can be reached after each character; whether the last one is among them at some point."""
    states, last = _states(program.pattern)
    here = {0}
    for at in range(len(name) + 1):
        todo = list(here)
        while todo:
            for place, there in states.free[todo.pop()]:
                if there not in here and _holds(place, name, at):
                    here.add(there)
                    todo.append(there)
        if last in here:
            return True
        if at < len(name):
            edges = (states.edges[state] for state in here)
            here = {edge[1] for edge in edges if edge is not None and edge[0](name[at])}
    return False

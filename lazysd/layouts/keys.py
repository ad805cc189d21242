"""Key templates: families of keys as literal text with fields, read and written by the same line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from .reading import is_ambiguous

_FIELD = re.compile(r"\{(\w+)(?::([^{}]+))?\}")
_SHIFT = re.compile(r"\+(?:([1-9][0-9]{0,2})|([A-Za-z_]\w*))")
_DIGITS = re.compile("[0-9]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NUMBER = r"(?:0|[1-9][0-9]{0,8})"  # ASCII, no leading zeros; longer ones count nothing that a checkpoint holds
NAME, TEXT = "*", "**"
_OPEN = {NAME: r"[^.]+", TEXT: r".+"}


def kind_of(text: str) -> str:
    """A key without its numbers, which keys of one kind differ in."""
    return _DIGITS.sub("0", text)


class Token(NamedTuple):
    """A piece of a template: literal text, or a field with the words it may be."""

    text: str  # of a field: its name
    kind: str  # "literal", "prefix", "number", "words", "name" (no dots), "text"
    words: tuple[str, ...] = ()
    shift: int = 0  # of a number: how much more it is in the key than in the field
    after: str = ""  # of a number: what config.json calls its shift, until that is filled in

    @property
    def regex(self) -> str:
        """What the piece matches."""
        if self.kind == "literal":
            return re.escape(self.text)
        if self.shift:
            return f"(?P<{self.text}>{_from(self.shift)})"
        body = {"prefix": r"(?:.*\.)?", "number": NUMBER, "name": _OPEN[NAME], "text": _OPEN[TEXT]}.get(self.kind)
        return f"(?P<{self.text}>{body or '|'.join(map(re.escape, self.words))})"

    def spelt(self, fields: Mapping[str, str]) -> str:
        """The text that stands for the piece in a key with these fields."""
        if self.kind == "literal":
            return self.text
        return fields[self.text] if not self.shift else str(int(fields[self.text]) + self.shift)

    @property
    def loose(self) -> str:
        """What stands where the piece belongs, well formed or not: `00` where a number should be."""
        return "[^.]*" if self.kind == "number" else re.sub(r"\(\?P<\w+>", "(?:", self.regex)


def _from(start: int) -> str:
    """What matches a number from `start` on: one of more digits, or the first digit that differs is larger."""
    digits = str(start)
    larger = [
        f"{digits[:place]}[{int(digit) + 1}-9]{'[0-9]' * (len(digits) - place - 1)}"
        for place, digit in enumerate(digits)
        if digit != "9"
    ]
    return "|".join((rf"[1-9][0-9]{{{len(digits)},8}}", *larger, digits))


@dataclass(frozen=True)
class KeyTemplate:
    """A family of keys: literal text with fields.

    `{prefix}` is any run of dotted names, or nothing; `{name}` is a number; `{name:a|b}` is one of the words given, and
    counts as 0, 1, … in that order; `{name:+1}` is a number, in the key one more than in the field, and
    `{name:+num_hidden_layers}` as much more as config.json says; `{name:*}` is one dotted name, `{name:**}` any text.
    Example: "{prefix}layers.{layer}.mlp.experts.{e}.{g:gate_proj|up_proj}.weight".
    """

    text: str
    tokens: tuple[Token, ...]
    fields: tuple[str, ...]
    words: dict[str, tuple[str, ...]]
    literal: str  # the longest literal part: a quick test before the regex
    weight: int  # how much literal text there is: the more, the more specific

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """What keys look like; compiled when a key first holds the literal, as few of the hundreds of templates' do."""
        return re.compile("".join(token.regex for token in self.tokens), re.DOTALL)

    def match(self, key: str) -> dict[str, str] | None:
        """The fields of a key, None where the key is not of this family."""
        if self.literal not in key:
            return None
        found = self.regex.fullmatch(key)
        if found is None or not self.shifts:
            return found.groupdict() if found else None
        fields = found.groupdict()
        return fields | {name: str(int(fields[name]) - shift) for name, shift in self.shifts.items()}

    def may_match(self, kind: str) -> bool:
        """Whether keys of a kind can be of this family, as far as text and words say: if not, none is."""
        return all(any(text in kind for text in texts) for texts in self._texts)

    @cached_property
    def _texts(self) -> list[tuple[str, ...]]:
        texts = ((token.text,) if token.kind == "literal" else token.words for token in self.tokens)
        return [tuple(map(kind_of, some)) for some in texts if some]

    def format(self, fields: dict[str, str]) -> str:
        """The key with these fields."""
        if self.shifts:
            return "".join([token.spelt(fields) for token in self.tokens])
        return "".join([token.text if token.kind == "literal" else fields[token.text] for token in self.tokens])

    @cached_property
    def shifts(self) -> dict[str, int]:
        """Fields whose number is another one in the key."""
        return {token.text: token.shift for token in self.tokens if token.shift}

    def bound(self, sizes: Mapping[str, int]) -> str:
        """The text of the template with the shifts that config.json states filled in."""

        def filled(field: re.Match[str]) -> str:
            shift = _SHIFT.fullmatch(field[2] or "")
            size = sizes.get(shift[2]) if shift and shift[2] else None
            return field[0] if size is None else f"{{{field[1]}:+{size}}}"

        return _FIELD.sub(filled, self.text)

    @cached_property
    def afters(self) -> tuple[str, ...]:
        """What config.json calls the shifts that are not filled in."""
        return tuple(token.after for token in self.tokens if token.after)

    @property
    def is_broad(self) -> bool:
        """Whether it holds a field of any text, and so covers keys that nobody had in mind."""
        return any(token.kind == "text" for token in self.tokens)

    def kind(self, name: str) -> str:
        """What a field may be: "prefix", "number", "words", "name" or "text"."""
        return self._kinds[name]

    @cached_property
    def _kinds(self) -> dict[str, str]:
        return {token.text: token.kind for token in self.tokens if token.kind != "literal"}

    def word(self, name: str, number: int) -> str:
        """How index `number` along key axis `name` is written."""
        return self.words[name][number] if name in self.words else str(number)

    def number(self, name: str, word: str) -> int:
        """The index along key axis `name` that a word stands for."""
        return self.words[name].index(word) if name in self.words else int(word)

    def neighbourhood(self, key_axes: tuple[str, ...]) -> Neighbourhood:
        """Keys that a reader would expect this template to cover: the same up to its first key axis or last name."""
        head: list[Token] = []
        for token in self.tokens:
            if token.kind != "literal" and token.text in key_axes:
                break
            head.append(token)
        while head and not (head[-1].kind == "literal" and "." in head[-1].text):
            if head[-1].kind == "prefix":
                break
            head.pop()
        if head and head[-1].kind == "literal":
            head[-1] = Token(head[-1].text[: head[-1].text.rindex(".") + 1], "literal")
        literal = max((token.text for token in head if token.kind == "literal"), key=len, default="")
        return Neighbourhood(literal, "".join(token.loose for token in head) + ".*")


class Neighbourhood(NamedTuple):
    """Keys among which a rule's own stand."""

    literal: str  # the longest that all of them hold: a quick test
    pattern: str

    def holds(self, key: str) -> bool:
        """Whether a key is one of them."""
        return self.literal in key and _compiled(self.pattern).fullmatch(key) is not None


@cache
def _compiled(regex: str) -> re.Pattern[str]:
    return re.compile(regex, re.DOTALL)


@cache
def parse_key(text: str) -> KeyTemplate:
    """Read a key template. Raises ValueError on stray braces, fields named twice, keys that could be read two ways."""
    tokens = _tokens(text)
    fields = [token.text for token in tokens if token.kind != "literal"]
    if len(set(fields)) != len(fields):
        raise ValueError(f"key template {text!r} names a field twice")
    literals = [token.text for token in tokens if token.kind == "literal"]
    if any(brace in part for part in literals for brace in "{}"):
        raise ValueError(f"key template {text!r} has a brace that is no field; write {{name}} or {{name:a|b}}")
    if is_ambiguous([(token.kind, token.words or (token.text,)) for token in tokens]):
        raise ValueError(
            f"key template {text!r} can be read in more than one way: fields that meet cannot be told apart; put text "
            "between them, or use one of {prefix} and {name:**} only"
        )
    words = {token.text: token.words for token in tokens if token.kind == "words"}
    literal = max(literals, key=len, default="")
    return KeyTemplate(text, tokens, tuple(fields), words, literal, sum(map(len, literals)))


def _tokens(text: str) -> tuple[Token, ...]:
    tokens: list[Token] = []
    at = 0
    for field in _FIELD.finditer(text):
        if field.start() > at:
            tokens.append(Token(text[at : field.start()], "literal"))
        at = field.end()
        tokens.append(_field(text, field[1], field[2]))
    if at < len(text):
        tokens.append(Token(text[at:], "literal"))
    return tuple(tokens)


def _field(text: str, name: str, body: str | None) -> Token:
    if not _NAME.fullmatch(name):
        raise ValueError(f"key template {text!r}: {name!r} is no name for a field; it starts with a letter")
    if name == "prefix":
        if body:
            raise ValueError(f"key template {text!r}: {{prefix}} is any run of dotted names and takes no words")
        return Token(name, "prefix")
    if body is None:
        return Token(name, "number")
    if shift := _SHIFT.fullmatch(body):
        return Token(name, "number", shift=int(shift[1] or 0), after=shift[2] or "")
    if body in _OPEN:
        return Token(name, "name" if body == NAME else "text")
    words = tuple(body.split("|"))
    if "" in words or len(set(words)) != len(words):
        raise ValueError(f"key template {text!r}: the words of {name} should differ, and none be empty")
    return Token(name, "words", words)

"""Whether a key template can read some key in two ways, decided exactly: two readings are walked side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Piece = tuple[str, tuple[str, ...]]  # kind of a token, its words or its literal text
Place = tuple[int, str]  # number of the piece, what has been read of it (numbers, prefixes and names: only what counts)

_OTHER = "\0"  # stands for every character that no piece names


def is_ambiguous(pieces: Sequence[Piece]) -> bool:
    """Whether some key can be split into these pieces in more than one way."""
    return not _is_plain(pieces) and _two_readings(pieces)


def _is_plain(pieces: Sequence[Piece]) -> bool:
    """Whether dots alone tell the fields apart: at most one in each dotted name, and one run of any length."""
    open_ended, in_name, at_start = 0, 0, True
    for kind, words in pieces:
        if kind == "literal":
            if "." in words[0]:
                in_name = 0
            at_start = words[0].endswith(".")
            continue
        if kind in ("prefix", "text"):
            open_ended += 1
            if not at_start or (kind == "text" and pieces[-1] != (kind, words)):
                return False
            in_name = 0
            continue
        in_name += 1
        at_start = False
        if in_name > 1 or open_ended > 1 or (kind == "words" and any("." in word for word in words)):
            return False
    return open_ended <= 1


def _step(piece: Piece, read: str, char: str) -> str | None:
    """What has been read of a piece after one more character; None where the character does not belong to it."""
    kind, words = piece
    if kind in ("literal", "words"):
        return read + char if any(word.startswith(read + char) for word in words) else None
    if kind == "number":
        return None if not ("0" <= char <= "9") or read == "0" else read or ("0" if char == "0" else "1")
    if kind == "prefix":
        return "." if char == "." else "x"
    return None if kind == "name" and char == "." else "x"


def _ends(piece: Piece, read: str) -> bool:
    kind, words = piece
    if kind in ("literal", "words"):
        return read in words
    return read in ("", ".") if kind == "prefix" else read != ""


def _next(pieces: Sequence[Piece], place: Place, char: str) -> Iterator[Place]:
    """Every place one more character may lead to: further into the piece, or into the next one."""
    number, read = place
    if (more := _step(pieces[number], read, char)) is not None:
        yield number, more
    while _ends(pieces[number], read) and number + 1 < len(pieces):
        number, read = number + 1, ""
        if (more := _step(pieces[number], read, char)) is not None:
            yield number, more


def _finishes(pieces: Sequence[Piece], place: Place) -> bool:
    number, read = place
    return _ends(pieces[number], read) and all(_ends(piece, "") for piece in pieces[number + 1 :])


def _two_readings(pieces: Sequence[Piece]) -> bool:
    if not pieces:
        return False
    named = {char for kind, words in pieces if kind in ("literal", "words") for word in words for char in word}
    alphabet = sorted(named | {".", "0", "7", _OTHER})
    todo: list[tuple[Place, Place]] = [((0, ""), (0, ""))]
    seen = set(todo)
    while todo:
        one, other = todo.pop()
        if one != other and _finishes(pieces, one) and _finishes(pieces, other):
            return True
        for char in alphabet:
            heres = list(_next(pieces, one, char))
            theres = heres if one == other else list(_next(pieces, other, char))
            for here in heres:
                for there in theres:
                    if here == there and one != other:
                        return True  # apart and together again: whatever follows can be read in both ways
                    pair = (here, there) if here <= there else (there, here)
                    if pair not in seen:
                        seen.add(pair)
                        todo.append(pair)
    return False

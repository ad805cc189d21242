"""How files are mutated, by structure and byte by byte; what is done with them is in `file_mutations`."""

from __future__ import annotations

import io
import json
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

WORDS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, -0.0, 2, 3, 127, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, 1e308),
    *(float("nan"), float("inf"), "", "a", "\0", "..", "../x", "/", "\ud800", "\u202e", "\x1b[2J", "x" * 300, "(a+)+$"),
    *([], [[]], {}, {"": ""}, [0, 10**9, 4], [-1], ["a"], {"a": {"a": {}}}, "BF16", "F4", "model.safetensors"),
)
BYTES = (b"", b"\0", b"\xff", b"{", b"}", b'"', b"[", b"]", b",", b":", b"9" * 40, b"-", b"\\u", b"e9", b" ", b"\n")


def nested(value: Any) -> list[tuple[Any, Any]]:
    """(holder, key or index) of every value in a nest of JSON."""
    found, todo = [], [value]
    while todo:
        one = todo.pop()
        keys: Any = list(one) if isinstance(one, dict) else range(len(one))
        for key in keys:
            found.append((one, key))
            if isinstance(one[key], (dict, list)):
                todo.append(one[key])
    return found


def mutated_value(value: Any, draw: random.Random) -> Any:
    """A nest of JSON with one to three of its parts changed, in place."""
    for _ in range(draw.randint(1, 3)):
        places = nested(value)
        if not places:
            break
        holder, key = draw.choice(places)
        what = draw.randrange(6)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[str(draw.choice(WORDS))] = holder.pop(key)
        elif what == 2 and isinstance(holder[key], int):
            holder[key] += draw.choice((-1, 1, 8, -(2**40), 2**40))
        elif what == 3:
            other, there = draw.choice(places)
            if there in other if isinstance(other, dict) else there < len(other):
                holder[key] = json.loads(json.dumps(other[there]))
        else:
            holder[key] = json.loads(json.dumps(draw.choice(WORDS)))
    return value


def mutated_json(raw: bytes, draw: random.Random) -> bytes:
    """The text of a JSON value with one to three of its parts changed, or its bytes."""
    if draw.random() < 0.4:
        return mutated_bytes(raw, draw)
    text = json.dumps(mutated_value(json.loads(raw), draw)).encode()
    if draw.random() < 0.05 and text.startswith(b"{"):  # a key twice
        inner = text[1:-1]
        text = b"{" + inner + b"," + inner + b"}"
    if draw.random() < 0.02:
        deep = draw.choice((60, 70, 3000, 100_000))
        text = text.replace(b"1", b"[" * deep + b"]" * deep, 1)
    if draw.random() < 0.02:
        text = text.replace(b"1", b"1" * draw.choice((20, 310, 5000)), 1)
    return text


def toml(value: Any) -> str:
    """A nest of JSON as TOML writes it, in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if value is None:
        return "''"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def mutated_bytes(raw: bytes, draw: random.Random) -> bytes:
    """Bytes with a few flipped, cut, doubled or put in."""
    made = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at, what = draw.randrange(len(made) + 1), draw.randrange(5)
        length = draw.choice((1, 1, 2, 8, 40))
        if what == 0 and at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            del made[at : at + length]
        elif what == 2:
            made[at:at] = draw.choice(BYTES)
        elif what == 3:
            made[at:at] = made[at : at + length]
        else:
            made[at : at + 1] = draw.choice(BYTES)
    return bytes(made)


def mutated_zip(raw: bytes, draw: random.Random) -> bytes:
    """An archive with one of its records changed, left out, there twice, packed or under another name."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        records = [(item.filename, archive.read(item)) for item in archive.infolist()]
    at, what = draw.randrange(len(records)), draw.randrange(6)
    name, data = records[at]
    how = [zipfile.ZIP_STORED] * len(records)
    if what == 0:
        del records[at]
    elif what == 1:
        records.insert(draw.randrange(len(records)), (name, mutated_bytes(data, draw)))
        how.append(zipfile.ZIP_STORED)
    elif what == 2:
        how[at] = zipfile.ZIP_DEFLATED
    elif what == 3:
        records[at] = draw.choice(records)[0], data
    else:  # what the pickle says, as a rule
        at = next(n for n, (other, _) in enumerate(records) if other.endswith(".pkl"))
        records[at] = records[at][0], mutated_bytes(records[at][1], draw)
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as archive:
        warnings.simplefilter("ignore")  # of names that stand there twice
        for (name, data), packed in zip(records, how, strict=False):
            archive.writestr(name, data, packed)
    return made.getvalue()


class TooMuch(BaseException):
    """A mutation took more work than any of its size may."""


class Kind:
    """Files, which of them is mutated and how, and what is done with the result."""

    def __init__(self, folder: Path, draw: random.Random):
        self.folder, self.draw = folder, draw

    def run(self) -> str:
        """One mutation: "accepted" or "refused". Raises what is wrong with lazysd."""
        raise NotImplementedError

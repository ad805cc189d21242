"""The quick reader of headers answers only what the strict parser says, to the last offset; else it answers nothing."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from lazysd.errors import FormatError
from lazysd.formats.safetensors import header as strict
from lazysd.formats.safetensors.canonical import read_canonical
from lazysd.formats.safetensors.entries import Header
from lazysd.formats.safetensors.header import read_strictly
from lazysd.formats.safetensors.header_writing import header_pieces, lay_out_header
from lazysd.stores.local import LocalFile

CODES = ("BF16", "F32", "U8", "I64", "F8_E4M3", "F4", "BOOL", "F6_E2M3")
SIZES = (0, 1, 2, 3, 7, 8, 9, 10, 11, 64, 4096, 10**9, 2**31, 10**17, 10**18, 2**62, 2**63, 10**19)
SNIPPETS = (
    *(b"-0", b"-1", b"0", b"00", b"01", b"1.0", b"1e3", b"8E0", b"true", b"null", b"NaN", b"Infinity", b'"8"', b"[]"),
    *(
        b"{}",
        b" ",
        b"\n",
        b"\t",
        b"\r",
        b"\0",
        b"\x01",
        b"\x7f",
        b"\x80",
        b"\xc3\xa9",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98",
    ),
    *(
        b",",
        b",,",
        b":",
        b'"',
        b"\\",
        b'\\"',
        b"\\u0061",
        b"\\ud800",
        b"\\n",
        b"/",
        b"{",
        b"}",
        b"[",
        b"]",
        b"}}",
        b"]}",
    ),
    *(b"__metadata__", b'"__metadata__":{},', b'"__metadata__":{"a":"1","a":"2"},', b'"__metadata__":[],'),
    *(b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}', b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'),
    *(b'"dtype":"F32",', b"BF16", b"bf16", b"F31", b"F4", b"999999999999999999", b"9223372036854775808", b"9" * 5000),
)


def a_header(rng: random.Random) -> bytes:
    """JSON as writers write it: one to fourteen tensors of the data's order, often with metadata."""
    plain = rng.random() < 0.7  # names without escapes, no empty tensors, whole bytes
    names = ["w", "é", "layers.0.w", "", "a-0,b", "\N{GRINNING FACE}", "x" * 300, "\x7f", "__metadata__x"]
    names += [] if plain else ['q"', "b\\"]
    rng.shuffle(names)
    count = rng.choice((1, 2, 3, 9, 14))
    rows = [
        (
            f"{names[number % len(names)]}{number or ''}",
            rng.choice(CODES[:5] if plain else CODES),
            tuple(rng.choice(SIZES[plain : rng.choice((4, 6, 12))]) for _ in range(rng.choice((0, 1, 2, 3)))),
        )
        for number in range(count)
    ]
    metadata = {"format": "pt", "ü": '"-0"'} if rng.random() < 0.6 else {}
    try:
        raw = b"".join(header_pieces(rows, metadata, lay_out_header(rows, metadata)[0]))[8:]
    except FormatError:
        return a_header(rng)
    kind = rng.random()
    if kind < 0.1:  # as Python's json writes it when nobody asks for less
        return json.dumps(json.loads(raw)).encode()
    if kind < 0.2:  # in another order
        fields = list(json.loads(raw).items())
        rng.shuffle(fields)
        return json.dumps(dict(fields), ensure_ascii=False, separators=(",", ":")).encode()
    return raw


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """Up to three edits: of a byte, of a snippet put in or put over, of digits, of stretches cut out or doubled."""
    text = raw
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        at = rng.randrange(len(text) + 1)
        to = min(len(text), at + rng.choice((0, 1, 1, 2, 5, 30, 70)))
        digit = rng.choice([place for place, char in enumerate(text) if 48 <= char < 58] or [at])
        low, high, new = rng.choice(
            (
                (at, at + 1, bytes([rng.randrange(256)])),
                (at, at, rng.choice(SNIPPETS)),
                (at, to, rng.choice(SNIPPETS)),
                (at, to, b""),
                (to, at, b""),  # doubled
                (digit, digit + 1, b"%d" % rng.randrange(10)),
                (digit, digit + 1, rng.choice(SNIPPETS[:14])),
                (digit, digit + 1, b""),
            )
        )
        text = text[:low] + new + text[high:]
    return text


def verdicts(raw: bytes, file_nbytes: int) -> tuple[Header | None, Header | None]:
    """What the quick reader and the strict parser say; None where they refuse."""
    try:
        said = read_strictly(raw, 8 + len(raw), file_nbytes)
    except FormatError:
        said = None
    return read_canonical(raw, 8 + len(raw), file_nbytes), said


def end_of(raw: bytes) -> int:
    """The file's size that the last data_offsets state, so that not every mutation ends as a truncated file."""
    numbers = [int(found) for found in re.findall(rb",([0-9]{1,19})\]", raw)]
    return 8 + len(raw) + max((number for number in numbers if number < 2**63), default=0)


def campaign(seed: int, count: int) -> dict[str, int]:
    """How often both said the same, and what; an AssertionError where they do not agree."""
    rng = random.Random(seed)
    seen = {"quick": 0, "strict only": 0, "refused": 0}
    for _ in range(count):
        whole = a_header(rng)
        raw = b"{" + mutated(rng, whole)[1:]  # what begins otherwise, neither is asked about
        for size in {end_of(raw), end_of(raw) + rng.choice((-1, 0, 1)), end_of(whole) - len(whole) + len(raw)}:
            quick, said = verdicts(raw, size)
            assert quick is None or quick == said, (raw, size)
            seen["quick" if quick else "strict only" if said else "refused"] += 1
    return seen


def test_what_the_quick_reader_answers_the_strict_parser_says() -> None:
    seen = campaign(seed=1, count=3000)
    assert min(seen.values()) > 100, seen  # all three kinds have been met


ENTRY = b'"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
NEXT = b'"b":{"dtype":"U8","shape":[3],"data_offsets":[2,5]}'
NOT_ANSWERED = {
    "twice": (b"{" + ENTRY + b"," + NEXT.replace(b"b", b"a", 1) + b"}", 5),
    "an escape": (b"{" + ENTRY.replace(b"a", b"\\u0061", 1) + b"}", 2),
    "a control character": (b"{" + ENTRY.replace(b"a", b"\n", 1) + b"}", 2),
    "no UTF-8": (b"{" + ENTRY.replace(b"a", b"\xff", 1) + b"}", 2),
    "no comma": (b"{" + ENTRY + NEXT + b"}", 5),
    "two commas": (b"{" + ENTRY + b",," + NEXT + b"}", 5),
    "a comma at the end": (b"{" + ENTRY + b",}", 2),
    "bytes behind": (b"{" + ENTRY + b"}x", 2),
    "another object": (b"{" + ENTRY + b"}{}", 2),
    "a leading zero": (b"{" + ENTRY.replace(b"[2]", b"[02]") + b"}", 2),
    "a comma in a shape": (b"{" + ENTRY.replace(b"[2]", b"[2,]") + b"}", 2),
    "a leading zero in offsets": (b"{" + ENTRY.replace(b",2]", b",02]") + b"}", 2),
    "minus zero": (b"{" + ENTRY.replace(b"[0,", b"[-0,") + b"}", 2),
    "a hole at the start": (b"{" + ENTRY.replace(b"[0,2]", b"[1,3]") + b"}", 3),
    "a hole": (b"{" + ENTRY + b"," + NEXT.replace(b"[2,5]", b"[3,6]") + b"}", 6),
    "an overlap": (b"{" + ENTRY + b"," + NEXT.replace(b"[2,5]", b"[1,4]") + b"}", 4),
    "another order": (b"{" + NEXT + b"," + ENTRY + b"}", 5),
    "a wrong size": (b"{" + ENTRY.replace(b"U8", b"F32") + b"}", 2),
    "an empty tensor": (b"{" + ENTRY.replace(b"[2]", b"[0]").replace(b"[0,2]", b"[0,0]") + b"}", 0),
    "an unknown dtype": (b"{" + ENTRY.replace(b"U8", b"U9") + b"}", 2),
    "truncated": (b"{" + ENTRY + b"}", 1),
    "padded": (b"{" + ENTRY + b"}", 3),
    "metadata that is an entry": (b"{" + ENTRY.replace(b'"a"', b'"__metadata__"') + b"}", 2),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{},' + ENTRY + b"}", 2),
    "a field of metadata twice": (b'{"__metadata__":{"x":"1","x":"1"},' + ENTRY + b"}", 2),
    "a number in metadata": (b'{"__metadata__":{"x":1},' + ENTRY + b"}", 2),
    "an entry inside of metadata": (b'{"__metadata__":{' + ENTRY + b"}}", 2),
    "metadata at the end": (b"{" + ENTRY + b',"__metadata__":{}}', 2),
    "a lone surrogate in metadata": (b'{"__metadata__":{"x":"\\ud800"},' + ENTRY + b"}", 2),
    "no tensors": (b"{}", 0),
}


@pytest.mark.parametrize("name", NOT_ANSWERED)
def test_on_any_doubt_it_answers_nothing(name: str) -> None:
    raw, nbytes = NOT_ANSWERED[name]
    assert read_canonical(raw, 8 + len(raw), 8 + len(raw) + nbytes) is None


def test_it_answers_what_writers_write(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of safetensors, transformers and PEFT, and our own: the strict parser is never asked."""
    paths = [path for path in sorted(golden.rglob("*.safetensors")) if path.stat().st_size > 200]
    expected = [strict.read_header(LocalFile(str(path))) for path in paths]
    monkeypatch.setattr(strict, "read_canonical", lambda *args: None)
    assert [strict.read_header(LocalFile(str(path))) for path in paths] == expected
    monkeypatch.undo()

    def asked(*args: object) -> Header:
        raise AssertionError("the strict parser was asked")

    monkeypatch.setattr(strict, "read_strictly", asked)
    assert [strict.read_header(LocalFile(str(path))) for path in paths] == expected
    assert len(paths) > 5

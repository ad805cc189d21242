"""The header parser refuses what two readers could understand differently, and agrees with safetensors on the rest."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lazysd.dtypes import DTYPES
from lazysd.errors import FormatError, LazysdError, MissingShardError, ReadError, UnsupportedCheckpointError
from lazysd.formats.safetensors.entries import Entry, Header
from lazysd.formats.safetensors.header import read_header as header_of
from lazysd.formats.safetensors.header_writing import header_pieces, lay_out_header
from lazysd.stores.local import LocalFile

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
OK = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
NUMPY = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "U16": "<u2", "I8": "i1", "U8": "u1", "BOOL": "?"}


def read_header(path: Path | str) -> Header:
    return header_of(LocalFile(str(path)))


def build(text: str | bytes, data: bytes = b"") -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + data


def parse(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    return read_header(path)


def one(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> str:
    return json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}})


EIGHT = bytes(8)
REJECTED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected at least the 8 bytes of the header length, found 0"),
    "seven bytes": (b"\x02" + bytes(6), "at least the 8 bytes of the header length, found 7"),
    "length of 2**64-1": (b"\xff" * 8 + b"{}", "at most 100000000 bytes, found a length of 18446744073709551615"),
    "length over 100 MB": (
        struct.pack("<Q", 100_000_001) + b"{}",
        "at most 100000000 bytes, found a length of 1000000",
    ),
    "length over file": (struct.pack("<Q", 3) + b"{}", "truncated: expected a header of 3 bytes, found 2"),
    "length zero": (bytes(8), "starts with '{', found b''"),
    "space first": (build(" {}"), "starts with '{', found b' {}'"),
    "640 bytes not JSON": (build(b" " * 640), "starts with '{'"),
    "list on top": (build("[]"), "starts with '{'"),
    "bad utf-8": (build(b'{"\xff":1}'), "expected UTF-8, found byte 0xff at offset 2"),
    "bad JSON": (build("{"), "expected JSON, found an error at offset 1"),
    "two values": (build("{}{}"), "expected JSON, found an error at offset 2: Extra data"),
    "NUL padding": (build(b"{}\0"), "expected JSON, found an error"),
    "NaN": (build('{"w":NaN}'), "finite numbers, found NaN"),
    "Infinity": (build('{"w":-Infinity}'), "finite numbers, found -Infinity"),
    "overflowing float": (build('{"w":1e999}'), "finite numbers, found '1e999'"),
    "deep lists": (build('{"w":' + "[" * 200_000 + "]" * 200_000 + "}"), "nested too deep"),
    "deep objects": (build('{"w":' * 100_000 + "1" + "}" * 100_000), "nested too deep"),
    "deep but parsable": (build('{"w":' + "[" * 500 + "]" * 500 + "}"), "tensor 'w': expected an object"),
    "deep shape": (build(one(shape=json.loads("[" * 300 + "]" * 300))), "whole numbers"),
    "huge int": (build(f'{{"w":{"9" * 5000}}}'), "thousands of digits"),
    "big int": (build(one(shape=[10**4000])), "'w': expected shape of whole numbers"),
    "big offset": (build(one(offsets=[0, 10**4000])), "'w': expected data_offsets of whole numbers"),
    "duplicate tensor": (build(f'{{"w":{OK},"w":{OK}}}', EIGHT), "tensor 'w': expected once, found twice"),
    "escaped duplicate": (build(f'{{"w":{OK},"\\u0077":{OK}}}', EIGHT), "tensor 'w': expected once, found twice"),
    "duplicate metadata": (
        build('{"__metadata__":{},"__metadata__":{}}'),
        "'__metadata__': expected once, found twice",
    ),
    "duplicate metadata key": (
        build('{"__metadata__":{"a":"1","a":"2"}}'),
        "__metadata__: the field 'a' is given twice",
    ),
    "metadata number": (build('{"__metadata__":{"a":1}}'), "__metadata__: expected a string for 'a', found 1"),
    "metadata list": (build('{"__metadata__":[]}'), "__metadata__: expected an object of strings"),
    "metadata null": (build('{"__metadata__":null}'), "__metadata__: expected an object of strings, found None"),
    "metadata of pairs": (build('{"__metadata__":[["a","b"]]}'), "__metadata__: expected an object of strings"),
    "duplicate field": (build('{"w":{"dtype":"F32",' + OK[1:] + "}", EIGHT), "'w': the field 'dtype' is given twice"),
    "entry list": (
        build('{"w":["F32",[2],[0,8]]}', EIGHT),
        "'w': expected an object with dtype, shape and data_offsets",
    ),
    "entry number": (build('{"w":1}'), "'w': expected an object"),
    "missing field": (build('{"w":{"dtype":"F32","shape":[2]}}'), "and no others, found 'dtype', 'shape'"),
    "unknown field": (build(one(order="C"), EIGHT), "and no others, found 'dtype', 'shape', 'data_offsets', 'order'"),
    "empty entry": (build('{"w":{}}'), "and no others, found none"),
    "unknown dtype": (build(one("F31"), EIGHT), "'w': expected a dtype among BOOL.*found 'F31'"),
    "lowercase dtype": (build(one("f32"), EIGHT), "found 'f32'"),
    "dtype list": (build(one(["F32"]), EIGHT), "expected dtype to be a string, found"),
    "dtype null": (build(one(None), EIGHT), "expected dtype to be a string, found None"),
    "shape string": (build(one(shape="2"), EIGHT), "expected shape to be a list, found '2'"),
    "shape object": (build(one(shape={}), EIGHT), "expected shape to be a list, found an object"),
    "negative dim": (build(one(shape=[-2]), EIGHT), "expected shape of whole numbers .*, found -2"),
    "two negative dims": (build(one(shape=[-1, -2]), EIGHT), "found -1"),
    "float dim": (build(one(shape=[2.0]), EIGHT), "found 2.0"),
    "bool dim": (build(one(shape=[True, 2]), EIGHT), "found True"),
    "null dim": (build(one(shape=[None]), EIGHT), "found None"),
    "negative offset": (build(one(offsets=[-8, 0]), EIGHT), "expected data_offsets of whole numbers .*, found -8"),
    "float offset": (build(one(offsets=[0, 8.0]), EIGHT), "found 8.0"),
    "bool offset": (build(one("U8", [1], [False, True]), b"1"), "found False"),
    "three offsets": (build(one(offsets=[0, 4, 8]), EIGHT), r"begin <= end, found \[0, 4, 8\]"),
    "begin after end": (build(one(offsets=[8, 0]), EIGHT), r"begin <= end, found \[8, 0\]"),
    "product overflow": (build(one(shape=[2**32, 2**32]), EIGHT), "fewer than 2\\*\\*63 bytes"),
    "overflow hidden by zero": (build(one(shape=[0, 2**62, 2**62], offsets=[0, 0])), "fewer than 2\\*\\*63 bytes"),
    "overflow of 2**64 elements": (build(one("U8", [2**32, 2**32], [0, 0])), "which overflows"),
    "too few bytes": (build(one(shape=[3]), EIGHT), r"'w': expected 12 bytes for F32 of shape \[3\], found 8"),
    "too many bytes": (build(one(shape=[1]), EIGHT), "expected 4 bytes .* found 8"),
    "half a byte": (build(one("F4", [3], [0, 2]), b"12"), "expected whole bytes, found 12 bits for F4"),
    "truncated": (build(one(), bytes(5)), "3 bytes are missing"),
    "padded": (build(one(), bytes(11)), "3 bytes are extra"),
    "no tensors, but data": (build("{}", b"1"), "1 bytes are extra"),
    "hole at start": (build(one(offsets=[8, 16]), bytes(16)), "right after the header, found 8: a hole of 8 bytes"),
    "hole": (
        build(f'{{"v":{OK},"w":{OK.replace("[0,8]", "[9,17]")}}}', bytes(17)),
        "tensor 'w': expected data_offsets to begin at 8, right after tensor 'v', found 9: a hole of 1 bytes",
    ),
    "overlap": (build(f'{{"v":{OK},"w":{OK.replace("[0,8]", "[4,12]")}}}', bytes(12)), "'w': .* an overlap of 4 bytes"),
    "same bytes twice": (build(f'{{"v":{OK},"w":{OK}}}', EIGHT), "'w': .* an overlap of 8 bytes"),
    "empty tensor inside another": (
        build(f'{{"v":{OK},"w":{{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}}}', EIGHT),
        "'w': .* an overlap of 4 bytes",
    ),
    "surrogate key": (
        build(f'{{"a\\ud800":{OK}}}', EIGHT),
        r"lone surrogate near '\[\[\"a\\ud800\"",
    ),
    "surrogate in metadata": (build('{"__metadata__":{"a":"\\uDFFF"}}'), "lone surrogate"),
}

FOREIGN = {
    "zip": (b"PK\x03\x04" + bytes(range(60)), "a zip archive, most likely a torch pickle; convert it"),
    **{f"pickle {v}": (bytes((0x80, v)) + b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "Python pickle") for v in range(2, 6)},
    "gguf": (b"GGUF\x03\0\0\0" + bytes(64), "a GGUF file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "run `git lfs pull`"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "numpy": (b"\x93NUMPY\x01\x00v\x00{'descr'", "a numpy array"),
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03", "unpack it first"),
    "short zip": (b"PK\x03\x04", "a zip archive"),
    "large gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03" + bytes(600_000), "unpack it first"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejects(tmp_path: Path, name: str) -> None:
    content, message = REJECTED[name]
    with pytest.raises(FormatError, match=message) as caught:
        parse(tmp_path, content)
    assert str(caught.value).startswith(f"cannot read {tmp_path / 'x.safetensors'}: ")
    assert len(str(caught.value)) < 800, "a message must stay readable whatever the file holds"


@pytest.mark.parametrize("name", FOREIGN)
def test_refuses_foreign_files(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN[name]
    with pytest.raises(UnsupportedCheckpointError, match=message):
        parse(tmp_path, content)


@pytest.mark.parametrize("nbytes", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_header_length_that_looks_like_a_pickle_is_a_header(tmp_path: Path, nbytes: int) -> None:
    content = build(one().ljust(nbytes), EIGHT)
    assert content[0] == 0x80
    assert content[1] in range(2, 6)
    assert list(parse(tmp_path, content).entries) == ["w"]


def test_a_hostile_length_allocates_nothing(tmp_path: Path) -> None:
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(FormatError, match="truncated"):
        parse(tmp_path, struct.pack("<Q", 99_000_000) + b"{}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_accepts_empty_tensors_at_boundaries_scalars_and_any_order(tmp_path: Path) -> None:
    text = json.dumps(
        {
            "last": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]},
            "none": {"shape": [0, 3], "data_offsets": [8, 8], "dtype": "BF16"},
            "end": {"dtype": "F32", "shape": [0], "data_offsets": [16, 16]},
            "__metadata__": {"format": "pt"},
            "first": {"dtype": "F4", "shape": [4, 4], "data_offsets": [0, 8]},
        }
    )
    header = parse(tmp_path, build(text, bytes(16)))
    start = 8 + len(text)
    assert header.data_start == start
    assert header.metadata == {"format": "pt"}
    assert list(header.entries.items()) == [
        ("first", Entry("F4", (4, 4), start, start + 8)),
        ("none", Entry("BF16", (0, 3), start + 8, start + 8)),
        ("last", Entry("I64", (), start + 8, start + 16)),
        ("end", Entry("F32", (0,), start + 16, start + 16)),
    ]
    assert parse(tmp_path, build("{}")).entries == {}
    assert list(parse(tmp_path, build(f'{{"\\ud83d\\ude00":{OK}}}', EIGHT)).entries) == ["\N{GRINNING FACE}"]


def test_equal_shapes_are_one_object(tmp_path: Path) -> None:
    entries = [parse(tmp_path, build(one(shape=[1, 2]), EIGHT)).entries["w"] for _ in range(2)]
    assert entries[0].shape is entries[1].shape
    assert entries[0].code is entries[1].code


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, error, message in (
        ("pipe", FormatError, "expected a regular file, found a named pipe"),
        (".", FormatError, "expected a regular file, found a directory"),
        ("/dev/zero", FormatError, "expected a regular file, found a device"),
        ("absent", MissingShardError, "no such file; check the path"),
        ("loop", ReadError, "cannot open .*loop"),
        ("nul\0", ReadError, "null byte"),
    ):
        with pytest.raises(error, match=message):
            read_header(tmp_path / name)


def test_a_failed_read_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(FormatError):
            parse(tmp_path, build("{"))
    assert len(os.listdir("/proc/self/fd")) == before


VALID = build(
    json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "U8", "shape": [5], "data_offsets": [24, 29]},
        }
    ),
    bytes(29),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(sorted(DTYPES)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
rough_entry = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "U8", "F4"]) | json_values, "shape": st.lists(st.integers(-1, 4)) | json_values},
    optional={"data_offsets": st.lists(st.integers(-1, 30), min_size=2, max_size=2) | json_values, "x": json_values},
)
headers = st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), rough_entry | json_values, max_size=4)
edits = st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6)


def survives(tmp_path: Path, content: bytes) -> None:
    """Only our own errors come out; what is accepted, safetensors accepts too and reads alike."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    try:
        header = read_header(path)
    except LazysdError:
        return
    assert sum(entry.stop - entry.start for entry in header.entries.values()) == len(content) - header.data_start
    if any(DTYPES[entry.code].bits % 8 for entry in header.entries.values()):
        return
    theirs = dict(safetensors.deserialize(content))
    assert theirs.keys() == header.entries.keys()
    for key, entry in header.entries.items():
        assert (theirs[key]["dtype"], tuple(theirs[key]["shape"])) == (entry.code, entry.shape)
        assert bytes(theirs[key]["data"]) == content[entry.start : entry.stop]


@same_folder
@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda b: build(b"{" + b)))
@example(build("{}"))
def test_random_bytes_raise_only_our_errors(tmp_path: Path, content: bytes) -> None:
    survives(tmp_path, content)


@same_folder
@given(edits, st.integers(0, len(VALID)), st.binary(max_size=3))
@example([(0, VALID[0])], len(VALID), b"")
def test_mutated_files_raise_only_our_errors(
    tmp_path: Path, changes: list[tuple[int, int]], keep: int, tail: bytes
) -> None:
    content = bytearray(VALID)
    for position, value in changes:
        content[position] = value
    survives(tmp_path, bytes(content))
    survives(tmp_path, bytes(content[:keep]) + tail)


@same_folder
@given(headers, st.binary(max_size=30))
@example(json.loads(one()), EIGHT)
def test_odd_headers_raise_only_our_errors(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    survives(tmp_path, build(json.dumps(header), data))


keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda key: key != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
tensors = st.dictionaries(keys, st.tuples(st.sampled_from(sorted(NUMPY)), shapes), max_size=6)
texts = st.dictionaries(keys, st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=3)


def array(key: str, code: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    nbytes = int(np.prod(shape)) * np.dtype(NUMPY[code]).itemsize
    pattern = np.random.default_rng(len(key)).integers(0, 2 if code == "BOOL" else 256, nbytes, dtype=np.uint8)
    return pattern.view(NUMPY[code]).reshape(shape)


@same_folder
@given(tensors, texts)
@example({"a": ("F32", (2, 3)), "b": ("U8", (5,)), "": ("BOOL", ())}, {"format": "np"})
def test_reads_what_safetensors_writes(
    tmp_path: Path, specs: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    arrays = {key: array(key, *spec) for key, spec in specs.items()}
    path = tmp_path / "x.safetensors"
    metadata = metadata if arrays else {}  # safetensors 0.8 writes metadata without tensors as '{},"__metadata__":…}'
    safetensors.numpy.save_file(arrays, path, metadata=metadata or None)
    header, content = read_header(path), path.read_bytes()
    assert header.entries.keys() == arrays.keys()
    assert header.metadata == metadata
    for key, entry in header.entries.items():
        assert (entry.code, entry.shape) == specs[key]
        assert content[entry.start : entry.stop] == arrays[key].tobytes()


@same_folder
@given(tensors, texts)
@example({"a": ("F32", (2, 3)), "b": ("U8", (5,)), "é": ("BOOL", ())}, {"format": "pt"})
def test_safetensors_reads_the_header_that_is_written(
    tmp_path: Path, specs: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    arrays = {key: array(key, *spec) for key, spec in specs.items()}
    rows = [(key, *spec) for key, spec in specs.items()]
    nbytes, starts = lay_out_header(rows, metadata)
    head = b"".join(header_pieces(rows, metadata, nbytes))
    content = head + b"".join(value.tobytes() for value in arrays.values())
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert len(head) == nbytes
    assert nbytes % 8 == 0
    assert int.from_bytes(head[:8], "little") == len(head) - 8
    mine = read_header(path)
    assert [mine.entries[key].start for key in specs] == starts
    assert mine.metadata == metadata
    raw = dict(safetensors.deserialize(content))
    assert {k: (v["dtype"], tuple(v["shape"]), bytes(v["data"])) for k, v in raw.items()} == {
        key: (*spec, arrays[key].tobytes()) for key, spec in specs.items()
    }
    with safetensors.safe_open(path, "np") as theirs:
        assert (theirs.metadata() or {}) == metadata
        for key, value in arrays.items():
            loaded = theirs.get_tensor(key)
            assert (loaded.dtype, loaded.shape, loaded.tobytes()) == (value.dtype, value.shape, value.tobytes())


@pytest.mark.parametrize(
    ("specs", "metadata", "message"),
    [
        ([("a", "U8", (1,)), ("a", "U8", (1,))], {}, "tensor 'a': the key is given twice"),
        ([("__metadata__", "U8", (1,))], {}, "the name is reserved for metadata"),
        ([("a", "F31", (1,))], {}, "tensor 'a': expected a dtype among .* found 'F31'"),
        ([("a", "F4", (3,))], {}, "tensor 'a': expected whole bytes"),
        ([("a", "U8", (-1,))], {}, "tensor 'a': expected shape of whole numbers"),
        ([("\ud800", "U8", (1,))], {}, "lone surrogate"),
        ([], {"a": 1}, "__metadata__: expected a string for 'a', found 1"),
        ([("k" * 100_000_001, "U8", (1,))], {}, "at most 100000000 are allowed; use smaller shards"),
    ],
)
def test_writing_a_header_refuses(specs: list[Any], metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        lay_out_header(specs, metadata)
    assert len(str(caught.value)) < 600


def test_golden_files(golden: Path) -> None:
    paths = sorted(golden.rglob("*.safetensors"))
    assert len(paths) > 5
    for path in paths:
        header = read_header(path)
        with safetensors.safe_open(path, "np") as theirs:
            assert header.entries.keys() == set(theirs.keys())
            assert header.metadata == (theirs.metadata() or {})


def test_a_header_is_written_in_small_pieces() -> None:
    """Tens of thousands of tensors: never the whole text at once, and byte for byte what json would make of it."""
    rows = [(f"model.layers.{at}.é", "BF16", (at % 7, 3)) for at in range(20_000)]
    nbytes, starts = lay_out_header(rows, {"format": "pt"})
    tracemalloc.start()
    try:
        longest, total = 0, b""
        for piece in header_pieces(iter(rows), {"format": "pt"}, nbytes):
            longest, total = max(longest, len(piece)), total + piece
        total = b""
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for piece in header_pieces(iter(rows), {"format": "pt"}, nbytes):
            total = piece
        grown = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert longest < 100_000
    assert grown < 400_000 < nbytes
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for (key, code, shape), start in zip(rows, starts, strict=True):
        begin = start - nbytes
        fields[key] = {"dtype": code, "shape": shape, "data_offsets": [begin, begin + 2 * shape[0] * shape[1]]}
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    whole = b"".join(header_pieces(rows, {"format": "pt"}, nbytes))
    assert whole == struct.pack("<Q", nbytes - 8) + text.ljust(nbytes - 8)

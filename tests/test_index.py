"""Finding the files of a checkpoint: every shape it comes in, and nothing outside its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from patience import not_forever
from safetensors.numpy import save_file

from lazysd.errors import (
    FormatError,
    LazysdError,
    MissingShardError,
    ReadError,
    UnsafePathError,
    UnsupportedCheckpointError,
)
from lazysd.formats.base import Folder
from lazysd.formats.containers import read
from lazysd.formats.safetensors import CONTAINER, index
from lazysd.formats.safetensors.index import check_weight_map, format_index
from lazysd.stores.base import Options
from lazysd.stores.local import LocalFile
from lazysd.stores.memory import MemoryStore
from lazysd.stores.places import place_of
from lazysd.stores.strict_json import read_json as json_of


class Found(NamedTuple):
    root: Path
    files: dict[str, Path]  # name -> real path
    weight_map: dict[str, str] | None
    index_metadata: Mapping[str, Any]


def find_shards(path: Path | str) -> Found:
    """The files of a checkpoint, without opening one."""
    folder = Folder(place_of(path, Options()))
    if not CONTAINER.recognises(folder):
        read(folder)
    found = index.find_shards(folder)
    files = {name: Path(folder.store.open(name).path) for name in found.names}
    return Found(Path(folder.store.path), files, found.weight_map, found.index_metadata)


def read_json(path: Path, what: str) -> dict[str, Any]:
    return json_of(LocalFile(str(path)), what)


same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
INDEX = "model.safetensors.index.json"
TWO = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: np.zeros(1, np.float32)}, folder / name)
    return folder


def write_index(folder: Path, weight_map: Any, name: str = INDEX, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map, **more}))
    return folder / name


def hub(cache: Path, model: str, snapshots: tuple[str, ...] = ("abc123",), ref: str | None = "abc123") -> Path:
    """A model as huggingface_hub leaves it: snapshots of links into blobs."""
    folder = cache / model
    fill(folder / "blobs", "0f0f")
    for snapshot in snapshots:
        (folder / "snapshots" / snapshot).mkdir(parents=True)
        (folder / "snapshots" / snapshot / "model.safetensors").symlink_to("../../blobs/0f0f")
    if ref is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(ref)
    return folder


def test_single_file(tmp_path: Path) -> None:
    fill(tmp_path, "any.safetensors", "other.safetensors")
    found = find_shards(tmp_path / "any.safetensors")
    assert found == (tmp_path, {"any.safetensors": tmp_path.resolve() / "any.safetensors"}, None, {})
    assert find_shards(str(tmp_path / "any.safetensors")) == found


def test_a_file_named_by_the_user_may_be_a_link(tmp_path: Path) -> None:
    fill(tmp_path / "store", "blob")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "m.safetensors").symlink_to(tmp_path / "store" / "blob")
    found = find_shards(tmp_path / "link" / "m.safetensors")
    assert found.root == tmp_path / "link"
    assert found.files["m.safetensors"] == (tmp_path / "store" / "blob").resolve()


def test_index_by_path_and_in_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, *TWO, "consolidated.safetensors")
    weight_map = {"b": TWO[1], "a": TWO[0]}
    path = write_index(tmp_path, weight_map)
    found = find_shards(tmp_path)
    assert found.files == {name: tmp_path.resolve() / name for name in TWO}
    assert found.weight_map == weight_map
    assert found.index_metadata == {"total_size": 8}
    assert found.root == tmp_path
    assert find_shards(path) == found


def test_index_may_name_a_subfolder(tmp_path: Path) -> None:
    fill(tmp_path, "sub/a.safetensors")
    write_index(tmp_path, {"w": "sub/a.safetensors"})
    assert find_shards(tmp_path).files == {"sub/a.safetensors": tmp_path.resolve() / "sub" / "a.safetensors"}


def test_several_indexes(tmp_path: Path) -> None:
    fill(tmp_path, "a.safetensors")
    write_index(tmp_path, {"w": "a.safetensors"}, "b.safetensors.index.json")
    assert find_shards(tmp_path).weight_map == {"w": "a.safetensors"}
    write_index(tmp_path, {"w": "a.safetensors"}, "c.safetensors.index.json")
    with pytest.raises(FormatError, match=r"found 2 indexes, 'b\.safetensors\.index\.json', 'c\..*; open one of them"):
        find_shards(tmp_path)
    write_index(tmp_path, {"x": "a.safetensors"})
    assert find_shards(tmp_path).weight_map == {"x": "a.safetensors"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "a.safetensors"], ["model.safetensors"]),
        (["adapter_model.safetensors", "a.safetensors"], ["adapter_model.safetensors"]),
        (["adapter_model.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["weights.safetensors", "pytorch_model.bin"], ["weights.safetensors"]),
        (["a.safetensors", "._a.safetensors"], ["a.safetensors"]),
        (TWO, TWO),
        (["m-00001-of-00001.safetensors"], ["m-00001-of-00001.safetensors"]),
    ],
)
def test_folder_without_index(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    found = find_shards(fill(tmp_path, *names))
    assert list(found.files) == expected
    assert found.weight_map is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [f"{c}.safetensors" for c in "abcdefg"],
            "found 7 files without an index, 'a.*'e.safetensors' and 2 more; open",
        ),
        ([*TWO, "x.safetensors"], "found 3 files without an index"),
        ([*TWO, "n-00001-of-00002.safetensors"], "found 3 files without an index"),
        ([TWO[0], "model-00002-of-00003.safetensors"], "found 2 files without an index"),
        ([TWO[1], "model-1-of-2.safetensors", "model-01-of-2.safetensors"], "expected 2 shards, found 3"),
        (["m-00000-of-00002.safetensors", "m-00001-of-00002.safetensors"], "2 whose numbers do not fit together"),
        (["m-00001-of-00002.safetensors", "m-00003-of-00002.safetensors"], "2 whose numbers do not fit together"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        find_shards(fill(tmp_path, *names))


@pytest.mark.parametrize("name", ["model.gguf", "model.onnx", "model.h5"])
def test_never_opens_other_kinds(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UnsupportedCheckpointError, match=f"found no safetensors.*'{name}'; convert it to safetensors"):
        find_shards(tmp_path)
    with pytest.raises(UnsupportedCheckpointError, match="lazysd never opens"):
        find_shards(tmp_path / name)
    write_index(tmp_path, {"w": name})
    with pytest.raises(UnsupportedCheckpointError, match="expected a safetensors file in a safetensors index"):
        find_shards(tmp_path)


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.json").write_text("{}")
    for path, error, message in (
        (tmp_path / "empty", MissingShardError, "expected .safetensors files, found none; check the path"),
        (tmp_path / "absent", MissingShardError, "does not exist; check the path"),
        (tmp_path / "nul\0", MissingShardError, "does not exist"),
        (tmp_path / "link", MissingShardError, "is a link to nothing"),
        ("absent/model.safetensors", MissingShardError, "does not exist; check the path"),
        ("org/absent", MissingShardError, "no models--org--absent in the hub cache.*`hf download org/absent`"),
        (tmp_path / "config.json", FormatError, "expected a .safetensors file, its index.json, or a folder of them"),
    ):
        with pytest.raises(error, match=message):
            find_shards(path)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x.safetensors", "a/../../x.safetensors", "a/../x.safetensors", "..", "a\\x", "..\\x", "x\0",
     "./x.safetensors", "a//x.safetensors", "x/", ".", ""],
)  # fmt: skip
def test_shard_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "x.safetensors", "home/x.safetensors", "home/a/x.safetensors")
    write_index(tmp_path / "home", {"v": "x.safetensors", "w": name})
    with pytest.raises(UnsafePathError, match="expected a plain name inside the folder; correct the index"):
        find_shards(tmp_path / "home")


@pytest.mark.parametrize("via", ["file", "folder", "sibling"])
def test_links_stay_inside_the_folder(tmp_path: Path, via: str) -> None:
    home, away = tmp_path / "home", fill(tmp_path / "home-away", "x.safetensors")
    home.mkdir()
    if via == "folder":
        (home / "sub").symlink_to(away)
        write_index(home, {"w": "sub/x.safetensors"})
    elif via == "file":
        (home / "x.safetensors").symlink_to(away / "x.safetensors")
    else:
        (home / INDEX).symlink_to(write_index(away, {"w": "x.safetensors"}))
        fill(home, "x.safetensors")
    with pytest.raises(UnsafePathError, match=r"is a link to .*home-away.*, outside the folder; open that file by"):
        find_shards(home)


def test_links_within_the_folder_and_to_it_are_fine(tmp_path: Path) -> None:
    fill(tmp_path / "home", "real")
    (tmp_path / "home" / "model.safetensors").symlink_to("real")
    (tmp_path / "alias").symlink_to("home")
    found = find_shards(tmp_path / "alias")
    assert found.root == tmp_path / "alias"
    assert found.files == {"model.safetensors": (tmp_path / "home" / "real").resolve()}


def test_missing_shards_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, TWO[0])
    write_index(tmp_path, {"a": TWO[0], "b": TWO[1], "c": TWO[1]})
    said = f"{INDEX}: 1 of 2 shards are missing, with 2 tensors: '{TWO[1]}'"
    assert str(index.find_shards(Folder(place_of(tmp_path, Options()))).absent).endswith(said)
    (tmp_path / TWO[1]).symlink_to("gone")
    assert str(index.find_shards(Folder(place_of(tmp_path, Options()))).absent).endswith(said)


@pytest.mark.parametrize(
    ("found", "total", "absent", "num_missing"),
    [
        ([1, 3], "00003", ["m-00002-of-00003.safetensors"], 1),
        ([1], "2", ["m-2-of-2.safetensors"], 1),
        ([11], "12", [f"m-{n:02}-of-12.safetensors" for n in (*range(1, 11), 12)], 11),
        ([1], "999999999", [f"m-{n:09}-of-999999999.safetensors" for n in range(2, 102)], 999_999_998),
    ],
)
def test_missing_numbers_are_named(
    tmp_path: Path, found: list[int], total: str, absent: list[str], num_missing: int
) -> None:
    """However many a name claims, only the first are listed."""
    fill(tmp_path, *(f"m-{number:0{len(total)}}-of-{total}.safetensors" for number in found))
    gone = index.find_shards(Folder(place_of(tmp_path, Options()))).absent
    assert gone is not None
    assert (list(gone.names), gone.num_missing, gone.num_shards) == (absent, num_missing, int(total))
    assert gone.homes is None


def test_only_regular_files_and_never_blocking(tmp_path: Path) -> None:
    with not_forever():
        os.mkfifo(tmp_path / "pipe.safetensors")
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "sub").mkdir()
        for name, message in (
            ("pipe.safetensors", "expected a regular file, found a named pipe"),
            ("sub", "expected a regular file, found a directory"),
            ("loop", "cannot be reached"),
            ("x" * 300, "cannot be reached"),
            ("pipe.safetensors/x", "cannot be reached"),
        ):
            write_index(tmp_path, {"w": name})
            with pytest.raises(FormatError, match=message):
                find_shards(tmp_path)
        (tmp_path / INDEX).unlink()
        for path in (tmp_path, tmp_path / "pipe.safetensors"):
            with pytest.raises(FormatError, match="found a named pipe"):
                find_shards(path)
        os.mkfifo(tmp_path / INDEX)
        for path in (tmp_path, tmp_path / INDEX):
            with pytest.raises(FormatError, match="found a named pipe"):
                find_shards(path)
        with pytest.raises(FormatError, match="found a device"):
            find_shards("/dev/zero")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"expected a JSON object, found \[\]"),
        ("", "expected JSON, found an error at offset 0"),
        (b'"\xff"', "expected UTF-8, found byte 0xff"),
        ('{"a":1,"a":2}', "the field 'a' is given twice"),
        ('{"weight_map":{"a":"x","\\u0061":"y"}}', "the field 'a' is given twice"),
        ('{"b":[{"a":1,"a":2}]}', "the field 'a' is given twice"),
        ('{"a":NaN}', "found NaN"),
        ('{"a":-1e400}', "found '-1e400', which overflows"),
        ('{"a":"\\ud800"}', "lone surrogate"),
        ('{"a":["\\ud800"]}', "lone surrogate"),
        ('{"a":' + "9" * 5000 + "}", "thousands of digits"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
        ('{"a":' + "[" * 64 + "]" * 64 + "}", "at most 64 levels of nesting, found more"),
        ("{}", "expected weight_map to be an object of tensors, found None"),
        ('{"weight_map":{}}', "expected weight_map to be an object of tensors"),
        ('{"weight_map":[]}', "expected weight_map to be an object of tensors"),
        ('{"weight_map":{"w":1}}', "expected a shard name for tensor 'w', found 1"),
        ('{"weight_map":{"w":["x"]}}', r"expected a shard name for tensor 'w', found \['x'\]"),
        ('{"weight_map":{"w":"x"},"metadata":1}', "expected metadata to be an object, found 1"),
    ],
)
def test_bad_index(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / INDEX).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError, match=message) as caught:
        find_shards(tmp_path)
    assert str(tmp_path / INDEX) in str(caught.value)
    assert "fetch it again" in str(caught.value)


def test_read_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    value = {"hidden_size": 32, "eps": 1e-6, "é": [None, True, {"deep": []}], "\N{GRINNING FACE}": "\N{GRINNING FACE}"}
    path.write_text(json.dumps(value))
    assert read_json(path, "config") == value
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(
        UnsupportedCheckpointError, match=r"cannot read the config .*config\.json: .*run `git lfs pull`"
    ):
        read_json(path, "config")
    with open(path, "wb") as file:
        file.truncate(512_000_001)
    with pytest.raises(FormatError, match="expected at most 512000000 bytes, found 512000001"):
        read_json(path, "config")
    with pytest.raises(MissingShardError, match="no such file"):
        read_json(tmp_path / "absent", "config")


def test_hub_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    cache = home / "hub"
    chosen = hub(cache, "models--org--two", ("aaa", "bbb"), "bbb\n")
    only = hub(cache, "models--org--one--x", ("aaa",), None)
    blob = {"model.safetensors": (chosen / "blobs" / "0f0f").resolve()}
    assert find_shards(chosen) == (chosen / "snapshots" / "bbb", blob, None, {})
    assert find_shards(chosen / "snapshots" / "aaa") == (chosen / "snapshots" / "aaa", blob, None, {})
    assert find_shards(only).root == only / "snapshots" / "aaa"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    assert find_shards("org/two").files == blob
    assert find_shards("models--org--two").files == blob
    assert find_shards("org/one--x").root == only / "snapshots" / "aaa"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(home))
    assert find_shards("org/two").files == blob
    monkeypatch.delenv("HF_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    home.rename(tmp_path / ".cache" / "huggingface" / "x")
    (tmp_path / ".cache" / "huggingface" / "hub").symlink_to("x/hub")
    assert list(find_shards("org/two").files) == ["model.safetensors"]
    fill(tmp_path / "org" / "two", "local.safetensors")
    assert list(find_shards("org/two").files) == ["local.safetensors"], "an existing path comes first"


def test_hub_snapshot_with_an_index(tmp_path: Path) -> None:
    model = hub(tmp_path, "models--o--n")
    write_index(model / "blobs", {"w": "model.safetensors"}, "1e1e")
    (model / "snapshots" / "abc123" / INDEX).symlink_to("../../blobs/1e1e")
    assert find_shards(model).weight_map == {"w": "model.safetensors"}


def test_hub_refusals(tmp_path: Path) -> None:
    two = hub(tmp_path, "models--o--two", ("aaa", "bbb"), None)
    with pytest.raises(FormatError, match=r"2 snapshots \('aaa', 'bbb'\) and no refs/main that chooses; open one of"):
        find_shards(two)
    (tmp_path / "models--o--none" / "snapshots").mkdir(parents=True)
    with pytest.raises(MissingShardError, match="has no snapshot"):
        find_shards(tmp_path / "models--o--none")
    for ref in ("../../x", "..", "", "a\0b", "\xff"):
        model = hub(tmp_path, f"models--o--{len(list(tmp_path.iterdir()))}", ref=ref)
        with pytest.raises(UnsafePathError, match="expected the name of a snapshot"):
            find_shards(model)
    linked = tmp_path / "models--o--linked"
    (linked / "snapshots").mkdir(parents=True)
    (linked / "snapshots" / "abc").symlink_to(fill(tmp_path / "away", "model.safetensors"))
    with pytest.raises(UnsafePathError, match="expected a folder, found a link"):
        find_shards(linked)


def test_links_into_blobs_of_another_model_or_from_elsewhere_are_refused(tmp_path: Path) -> None:
    other = hub(tmp_path, "models--o--other")
    model = hub(tmp_path, "models--o--mine")
    link = model / "snapshots" / "abc123" / "model.safetensors"
    link.unlink()
    link.symlink_to(other / "blobs" / "0f0f")
    with pytest.raises(UnsafePathError, match="outside the folder"):
        find_shards(model)
    plain = hub(tmp_path, "plain")
    with pytest.raises(UnsafePathError, match="outside the folder"):
        find_shards(plain / "snapshots" / "abc123")


def test_format_index_writes_what_transformers_writes(golden: Path) -> None:
    content = (golden / "qwen3_moe_tiny" / INDEX).read_bytes()
    index = json.loads(content)
    shuffled = dict(sorted(index["weight_map"].items(), reverse=True))
    written = b"".join(
        format_index(shuffled.items(), index["metadata"]["total_size"], index["metadata"]["total_parameters"])
    )
    assert written.rstrip(b"\n") == content.rstrip(b"\n")
    assert written.endswith(b"}\n")
    found = find_shards(golden / "qwen3_moe_tiny")
    assert found.weight_map == index["weight_map"]
    assert found.index_metadata == index["metadata"]


GOOD_MAP = {"a": "1", "b": "1", "c": "2"}


@pytest.mark.parametrize(
    ("weight_map", "keys", "message"),
    [
        (GOOD_MAP, {"1": ["a"], "2": ["c"]}, "index i.json does not fit .* 1 tensors are named but in no shard: 'b'; "),
        (GOOD_MAP, {"1": ["a", "b"]}, "1 tensors are named but in no shard: 'c'"),
        (GOOD_MAP, {"1": ["a"], "2": ["b", "c"]}, r"in another shard than named \(the first one in '2'\): 'b';"),
        (GOOD_MAP, {"1": "abx", "2": "c"}, "1 tensors are in a shard but not named: 'x'"),
        (GOOD_MAP, {"1": "abdefghij", "2": "c"}, "7 tensors are in a shard .* 'd', 'e', 'f', 'g', 'h' and 2 more; "),
    ],
)
def test_check_weight_map_refuses(weight_map: dict[str, str], keys: dict[str, list[str]], message: str) -> None:
    assert check_weight_map(weight_map, {"1": ["b", "a"], "2": iter("c")}, "i.json") == []
    with pytest.raises(FormatError, match=message):
        check_weight_map(weight_map, keys, "i.json")


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ReadError, match=r"cannot list .*Permission denied; check the path and its permissions"):
        find_shards(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
names = st.text("./\\ab\0", max_size=8) | st.text(max_size=8)


@same_folder
@given(
    st.binary(max_size=60)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.text(max_size=4), names).map(lambda value: json.dumps({"weight_map": value}).encode())
    | st.tuples(st.integers(0, 60), st.integers(0, 255)).map(
        lambda edit: (
            (content := bytearray(b'{"metadata":{"total_size":8},"weight_map":{"w":"a.safetensors"}}'))[: edit[0]]
            + bytes([edit[1]])
            + content[edit[0] + 1 :]
        )
    )
)
@example(b'{"weight_map":{"w":"a.safetensors"}}')
def test_any_index_raises_only_our_errors(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path / "home", "a.safetensors")
    (tmp_path / "home" / INDEX).write_bytes(content)
    try:
        found = find_shards(tmp_path / "home")
    except LazysdError:
        assert content != b'{"weight_map":{"w":"a.safetensors"}}'
        return
    assert all(path.is_relative_to((tmp_path / "home").resolve()) for path in found.files.values())
    assert found.weight_map is not None
    gone = index.find_shards(Folder(place_of(tmp_path / "home", Options()))).absent
    assert sorted(set(found.weight_map.values())) == sorted([*found.files, *(gone.names if gone else ())])


@pytest.mark.parametrize("text", ['"x": 1', '"x": "\\"", "y": "\\u0061"'])
def test_json_is_held_to_its_limits_with_and_without_escapes(text: str) -> None:
    deep = f'{{{text}, "d": ' + '{"a": [' * 40 + "1" + "]}" * 40 + "}"
    twice = f'{{{text}, "d": {{"a": 1, "a": 2}}}}'
    for raw, message in ((deep, "at most 64 levels of nesting"), (twice, "the field 'a' is given twice")):
        with pytest.raises(FormatError, match=message):
            json_of(MemoryStore({"c": raw.encode()}).open("c"), "config.json")
    good = json_of(MemoryStore({"c": f"{{{text}}}".encode()}).open("c"), "config.json")
    assert good == json.loads(f"{{{text}}}")

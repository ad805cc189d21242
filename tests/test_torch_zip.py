"""Files of torch.save: read by name, lazily; what they need beyond tensors is refused by name, and none of it runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import not_forever
from safetensors.torch import load_file

import lazysd
from lazysd.cli.main import main
from lazysd.errors import FormatError, LazysdError, MissingShardError, MissingTensorError, UnsupportedCheckpointError
from lazysd.formats import containers
from lazysd.formats.pickles import TENSORS, most_nbytes, unpickle
from lazysd.testing import assert_reads_only, assert_same_bytes

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
]


def saved(value: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def test_members_are_found_by_looking() -> None:
    names = [member.name for member in containers.members()]
    assert names == ["safetensors", "dcp", "torch"]


@pytest.mark.parametrize("mode", ["mmap", "pread"])
def test_every_dtype_and_stride(tmp_path: Path, mode: str) -> None:
    state: dict[str, torch.Tensor] = {
        str(dtype): torch.randint(0, 2, (3, 4)).to(dtype) if dtype.itemsize > 1 or dtype is torch.bool
        else torch.arange(12, dtype=torch.uint8).view(dtype).reshape(3, 4)
        for dtype in DTYPES
    }  # fmt: skip
    wide = torch.randn(6, 8)
    state |= {
        "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3), "turned": torch.randn(4, 6).t(), "part": wide[2:4],
        "column": wide[:, 3:4], "channels": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "one": torch.randn(1, 4, 1).transpose(0, 1), "wide": wide, "every third": torch.randn(7, 9)[::3, 1::2],
        "corner": wide[1:5, 2:6].t(), "deep": torch.randn(3, 4, 5)[:, ::2, 1:3].permute(2, 0, 1),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }  # fmt: skip
    ckpt = lazysd.open(saved(state, tmp_path / "pytorch_model.bin"), io=mode)
    assert list(ckpt) == list(state)
    for key, tensor in state.items():
        assert_same_bytes(ckpt[key], tensor.detach())
    assert sum(nbytes for *_, nbytes in ckpt["part"].reads()) == ckpt["part"].nbytes
    assert_reads_only(lambda: lazysd.open(tmp_path))
    assert_reads_only(ckpt["turned"][1:3].materialize, [ckpt["turned"]])
    ckpt.save(tmp_path / "out")
    assert_same_bytes(load_file(tmp_path / "out" / "model.safetensors"), {k: t.detach() for k, t in state.items()})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_any_view_of_a_storage(tmp_path: Path, data: st.DataObject) -> None:
    dims = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    tensor = torch.arange(float(torch.Size(dims).numel())).reshape(dims)
    tensor = tensor.permute(data.draw(st.permutations(range(len(dims)))))
    steps = [
        slice(data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size)), data.draw(st.integers(1, 3)))
        for size in tensor.shape
    ]
    tensor = tensor[tuple(steps)]
    assert_same_bytes(lazysd.open(saved({"x": tensor}, tmp_path / "x.pt"))["x"], tensor)


def test_shared_storages_are_read_once_and_written_twice(tmp_path: Path) -> None:
    tied = torch.randn(5, 4)
    ckpt = lazysd.open(saved({"a": tied, "b": tied, "c": tied[2:]}, tmp_path / "m.pt"))
    assert ckpt["a"].reads() == ckpt["b"].reads()
    ckpt.save(tmp_path / "out")
    assert_same_bytes(load_file(tmp_path / "out" / "model.safetensors"), {"a": tied, "b": tied, "c": tied[2:]})


def test_nested_dicts_and_what_is_no_tensor(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    state = {"model": OrderedDict(layer.state_dict()), "optim": optimizer.state_dict(), "epoch": 3, "tags": [["a"], {}]}
    ckpt = lazysd.open(saved(state, tmp_path / "last.ckpt"))
    assert {"model.weight", "model.bias", "optim.state.0.exp_avg"} < set(ckpt)
    assert_same_bytes(ckpt["model.weight"], layer.weight.detach())
    (remark,) = ckpt.remarks
    assert "what is no tensor is left out" in remark
    assert "'optim.param_groups.0.lr'" in remark
    clash = saved({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, tmp_path / "clash.pt")
    with pytest.raises(FormatError, match=r"two of its tensors are called 'a\.b'"):
        lazysd.open(clash)


def test_an_index_of_several_files(tmp_path: Path) -> None:
    parts = {f"pytorch_model-0000{n}-of-00002.bin": {f"w{n}": torch.full((2,), float(n))} for n in (1, 2)}
    for name, part in parts.items():
        saved(part, tmp_path / name)
    assert set(lazysd.open(tmp_path)) == {"w1", "w2"}
    index = {"metadata": {}, "weight_map": {key: name for name, part in parts.items() for key in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for path in (tmp_path, tmp_path / "pytorch_model.bin.index.json"):
        ckpt = lazysd.open(path)
        assert_same_bytes(ckpt, {"w1": torch.full((2,), 1.0), "w2": torch.full((2,), 2.0)})
        assert (ckpt.path, ckpt.remarks) == (tmp_path, ())
    index["weight_map"]["w3"] = "pytorch_model-00001-of-00002.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="1 tensors are named but in no shard: 'w3'"):
        lazysd.open(tmp_path)
    del index["weight_map"]["w3"]
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(MissingShardError, match="1 of 2 shards are missing, with 1 tensors"):
        lazysd.open(tmp_path)
    part = lazysd.open(tmp_path, partial=True)
    assert_same_bytes(part, {"w1": torch.full((2,), 1.0)})
    with pytest.raises(MissingTensorError, match=r"its shard 'pytorch_model-00002-of-00002\.bin' is missing"):
        part["w2"]
    with pytest.raises(MissingShardError, match="cannot save a part"):
        part.save(tmp_path / "out")
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(MissingShardError, match="1 of 2 shards are missing: 'pytorch_model-00002-of-00002"):
        lazysd.open(tmp_path)
    assert set(lazysd.open(tmp_path, partial=True)) == {"w1"}


def test_consolidated_files(tmp_path: Path) -> None:
    saved({"w": torch.ones(2)}, tmp_path / "consolidated.00.pth")
    assert set(lazysd.open(tmp_path)) == {"w"}
    saved({"w": torch.ones(2)}, tmp_path / "consolidated.01.pth")
    with pytest.raises(UnsupportedCheckpointError, match=r"2 files: 'consolidated\.00\.pth'.* one rank's slices each"):
        lazysd.open(tmp_path)
    assert set(lazysd.open(tmp_path / "consolidated.01.pth")) == {"w"}


def test_a_conversion_from_it(golden: Path, tmp_path: Path) -> None:
    source = golden / "qwen3_moe_tiny"
    state = {key: tensor for path in sorted(source.glob("*.safetensors")) for key, tensor in load_file(path).items()}
    saved(state, tmp_path / "src" / "pytorch_model.bin")
    (tmp_path / "src" / "config.json").write_bytes((source / "config.json").read_bytes())
    (tmp_path / "src" / "training_args.bin").write_bytes(b"x")
    ckpt = lazysd.open(tmp_path / "src")
    assert ckpt.layout == "hf"
    assert "'training_args.bin'" in ckpt.remarks[0]
    assert main(["convert", str(tmp_path / "src"), str(tmp_path / "out"), "--to", "nemo", "--verify"]) == 0
    lazysd.open(source).convert("nemo").save(tmp_path / "expected")
    assert_same_bytes(lazysd.open(tmp_path / "out"), dict(lazysd.open(tmp_path / "expected")))


# What nobody vouches for.


class Evil:
    """A pickle of this runs a command."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place}",)


def test_code_is_named_and_does_not_run(tmp_path: Path) -> None:
    import argparse

    sentinel = tmp_path / "ran"
    for value, name in (
        ({"w": torch.ones(1), "x": Evil(sentinel)}, r"(posix|os)\.system"),
        ({"w": torch.ones(1), "args": argparse.Namespace(a=1)}, r"argparse\.Namespace"),
        (torch.nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
    ):
        with pytest.raises(UnsupportedCheckpointError, match=rf"asks for '{name}'.*does not run code"):
            lazysd.open(saved(value, tmp_path / "m.pt"))
    assert not sentinel.exists()


def test_other_kinds_of_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedCheckpointError, match=r"found a pickle of torch before 1\.6"):
        lazysd.open(path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(UnsupportedCheckpointError, match="TorchScript"):
        lazysd.open(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UnsupportedCheckpointError, match="found no zip archive"):
        lazysd.open(path)
    with pytest.raises(UnsupportedCheckpointError, match="holds no tensor, only 'a'"):
        lazysd.open(saved({"a": 1}, path))
    with pytest.raises(UnsupportedCheckpointError, match=r"'w': it is an expanded view"):
        lazysd.open(saved({"w": torch.ones(1).expand(5)}, path))
    with pytest.raises(UnsupportedCheckpointError, match=r"m\.pt: 'w': it is of dtype 'ComplexDouble"):
        lazysd.open(saved({"w": torch.ones(1, dtype=torch.complex128)}, path))
    inner: dict[str, Any] = {"w": torch.ones(1)}
    with pytest.raises(UnsupportedCheckpointError, match="held twice"):
        lazysd.open(saved({"a": inner, "b": inner}, path))


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    saved({"w": torch.ones(100)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for item in old.infolist():
            packed = zipfile.ZIP_DEFLATED if "/data/" in item.filename else zipfile.ZIP_STORED
            new.writestr(item.filename, old.read(item), packed)
    with pytest.raises(UnsupportedCheckpointError, match="is not stored as it is"):
        lazysd.open(tmp_path / "b.pt")


def test_damage_anywhere_is_an_error_of_ours_or_harmless(tmp_path: Path) -> None:
    path = saved(
        {"a": torch.arange(6.0).reshape(2, 3), "b": {"c": torch.ones(3, dtype=torch.int16)}}, tmp_path / "m.pt"
    )
    whole = path.read_bytes()
    draw = random.Random(1)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 3))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged if draw.random() < 0.9 else damaged[: draw.randrange(len(damaged))])
        try:
            for node in lazysd.open(path, io="pread").values():
                node.materialize()
        except LazysdError:
            continue


def archive_of(record: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", record)
    return path


def dag(levels: int) -> bytes:
    """A dict whose key is a tuple of two tuples of two ...: hashing it takes 2 to the power of its levels."""
    return (
        b"\x80\x02}K\x01"
        + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(levels))
        + b"K\x01s."
    )


@pytest.mark.parametrize("levels", [40, 200])
def test_a_tuple_that_takes_forever_to_hash_is_refused(tmp_path: Path, levels: int) -> None:
    record = dag(levels)
    assert len(record) < 1200
    with not_forever():
        with pytest.raises(FormatError, match="nests tuples of more than 1000 elements"):
            lazysd.open(archive_of(record, tmp_path / "m.pt"))
        (tmp_path / "dcp").mkdir()
        (tmp_path / "dcp" / ".metadata").write_bytes(record)
        with pytest.raises(FormatError, match="nests tuples"):
            lazysd.open(tmp_path / "dcp")


ASIDE_NBYTES = 100_000  # the error, its traceback, and the stack as it grows
WASTEFUL = {
    "dicts": b"}",
    "lists": b"]",
    "sets": b"\x8f",
    "marks": b"(",
    "pairs of nothing": b"NN\x86",
    "lists of marks": b"(l",
    "dicts of one": b"}NNs",
    "numbers": b"M\xff\xff",
    "sizes": b"ctorch\nSize\n)R",
    "text with one wide letter": b"X\x10\x00\x00\x00abcdefghijkl\xf0\x9f\x98\x80",
}


@pytest.mark.parametrize("what", WASTEFUL)
def test_a_pickle_takes_no_more_memory_than_its_length_allows_for(tmp_path: Path, what: str) -> None:
    once = WASTEFUL[what]
    data = b"\x80\x04" + once * (60_000 // len(once)) + b"."
    tracemalloc.start()
    try:
        with contextlib.suppress(FormatError):
            unpickle(data, "here", TENSORS, "save it again")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= most_nbytes(len(data)) + ASIDE_NBYTES, what


@pytest.mark.parametrize("what", ["dicts", "lists", "sets", "marks"])
def test_a_pickle_that_would_is_refused(tmp_path: Path, what: str) -> None:
    record = b"\x80\x04" + WASTEFUL[what] * 100_000 + b"."
    with pytest.raises(FormatError, match="takes far more memory than its length allows for"):
        lazysd.open(archive_of(record, tmp_path / "m.pt"))


def test_a_deep_pickle_is_an_error_of_ours(tmp_path: Path) -> None:
    value: Any = 1
    for _ in range(200):
        value = [value]
    with pytest.raises(LazysdError, match="nested in itself, held twice, or too deep"):
        lazysd.open(archive_of(pickle.dumps({"a": value}), tmp_path / "m.pt"))


def test_bytes_in_memory(tmp_path: Path) -> None:
    held = io.BytesIO()
    torch.save({"w": torch.arange(3)}, held)
    assert_same_bytes(lazysd.open({"pytorch_model.bin": held.getvalue()}), {"w": torch.arange(3)})


@pytest.mark.parametrize("view", ["conj", "imag of conj"])
def test_bits_that_are_not_the_values_are_refused(tmp_path: Path, view: str) -> None:
    """torch keeps conjugation and negation as marks beside the storage; without them the values are others."""
    held = torch.tensor([1 + 2j, 3 - 4j])
    tensor = held.conj() if view == "conj" else held.conj().imag
    torch.save({"x": tensor}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedCheckpointError, match=r"pytorch_model.bin.*marks (conj|neg): .* resolve_conj\(\)"):
        lazysd.open(tmp_path)
    torch.save({"x": tensor.resolve_conj().resolve_neg().clone()}, tmp_path / "pytorch_model.bin")
    assert torch.equal(lazysd.open(tmp_path)["x"].materialize(), tensor)

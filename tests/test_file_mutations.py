"""A few thousand mutations of every kind of file that decides; `make fuzz` makes as many as asked."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from checkpoints import random_hf
from file_mutations import KINDS, SHARES, campaign
from quantised_experts import experts, fp8_codes
from safetensors.torch import save

import lazysd
from lazysd.checking import check_folder
from lazysd.errors import FormatError, LayoutError
from lazysd.etags import check_snapshot
from lazysd.overview import overview
from lazysd.peft.config import AdapterConfig, generation_of
from lazysd.quantization import dequantize
from lazysd.save.manifest import MANIFEST, recover
from lazysd.stores.journal import Journal

COUNTS = {"header": 1500, "index": 1500, "torch": 400, "toml": 600, "manifest": 300, "dcp": 400, "slices": 600}
COUNTS |= {"graph": 1000, "config": 100, "quantised": 150, "journal": 40, "snapshot": 60, "server": 100}


@pytest.mark.parametrize("kind", KINDS)
def test_mutations(kind: str, tmp_path: Path) -> None:
    failures: list[str] = []
    counts = campaign(kind, tmp_path / kind, 0, COUNTS.get(kind, 20), failures.append)
    assert not failures, f"{len(failures)} of one kind, the first: {failures[0]}"
    assert counts["refused"] or kind in ("keys", "journal")  # which keep every file that was there
    assert counts["accepted"] or kind == "server"


def test_every_kind_has_its_share() -> None:
    assert SHARES.keys() == KINDS.keys()
    assert sum(SHARES.values()) == 1_000_000
    assert min(SHARES.values()) >= 4_000


def test_a_fault_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign itself: an error that is none of lazysd's is one that it tells of."""

    def open_badly(path: object) -> None:
        raise KeyError("oh")

    monkeypatch.setattr("lazysd.open", open_badly)
    failures: list[str] = []
    assert campaign("index", tmp_path, 0, 3, failures.append) == {"accepted": 0, "refused": 0}
    assert len(failures) == 3
    assert "KeyError" in failures[0]


def test_config_that_was_found(tmp_path: Path) -> None:
    """quantization_config that is no table; a version of PEFT of 5,000 digits."""
    config = b'{"model_type": "qwen3_moe", "quantization_config": 1}'
    ckpt = lazysd.open({"model.safetensors": save(random_hf()), "config.json": config})
    with pytest.raises(LayoutError, match="quantization_config: 1, which is no table of settings"):
        ckpt.convert("nemo")
    assert generation_of("9" * 5000 + ".1") is None
    assert generation_of("0.19.1") == "peft-0.19"


@pytest.mark.parametrize("value", [False, 0, 0.0, {}, ""])
@pytest.mark.parametrize("name", ["target_modules", "target_parameters", "rank_pattern", "alpha_pattern"])
def test_what_is_empty_is_no_list(name: str, value: object) -> None:
    """Python takes them for empty lists, and lists of targets were then walked over."""
    if (name, value) == ("target_modules", "") or ("pattern" in name and value == {}):
        AdapterConfig({name: value})
    else:
        with pytest.raises(LayoutError, match=f"{name} should"):
            AdapterConfig({name: value})


def test_scales_that_fit_no_weight_are_looked_at_and_named() -> None:
    """inspect let a ValueError out; a weight of no columns made blocks of no columns."""
    tensors, config = experts("8-bit a row", E=2, I=32, H=32)
    scale = "model.layers.0.self_attn.q_proj.weight_scale"
    for weight, dims in ((tensors[scale.removesuffix("_scale")], (3, 5)), (fp8_codes(64, 0), (64, 1))):
        made = {**tensors, scale: torch.ones(dims).bfloat16(), scale.removesuffix("_scale"): weight}
        ckpt = lazysd.open({"model.safetensors": save(made), "config.json": json.dumps(config).encode()})
        assert "cannot be read: model.layers.0.self_attn.q_proj.weight (8-bit): " in json.dumps(overview(ckpt))
        with pytest.raises(LayoutError, match="q_proj"):
            dequantize(ckpt)


def saved(**tensors: torch.Tensor) -> dict[str, bytes]:
    held = io.BytesIO()
    torch.save(tensors, held)
    with zipfile.ZipFile(held) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(records: list[tuple[str, bytes]]) -> dict[str, bytes]:
    held = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(held, "w") as archive:
        warnings.simplefilter("ignore")
        for name, data in records:
            archive.writestr(name, data)
    return {"pytorch_model.bin": held.getvalue()}


def test_archives_that_can_be_read_in_two_ways() -> None:
    """Of two records of one name torch reads one, zipfile the other; a storage has the size that is stated."""
    records = saved(a=torch.arange(4.0), b=torch.arange(4.0, 8.0))
    assert lazysd.open(zipped(list(records.items())))["b"].materialize().tolist() == [4, 5, 6, 7]
    first, second = (name for name in records if "/data/" in name)
    with pytest.raises(FormatError, match="two records of its archive have the same name"):
        lazysd.open(zipped([*records.items(), (first, records[second])]))
    for data in (records[first] + b"more", records[first][:-4]):
        with pytest.raises(FormatError, match="another size than is stated"):
            lazysd.open(zipped(list({**records, first: data}.items())))


SIGNED = b'{\n "plan": "x",\n "files": {"w.safetensors": {"nbytes": 1, "crc32": "00000000"}},\n "tensors": {\n%b\n },'


@pytest.mark.parametrize(
    "line",
    [
        b'  "a": {"dtype": "F32", "shape": [1], "shard": 5, "crc32": "00000000"}',
        b'  "a": {"dtype": "F32", "shape": [1], "shard": "other.safetensors", "crc32": "00000000"}',
        b'  "a": {"dtype": "F32", "shape": ["1"], "shard": "w.safetensors", "crc32": "00000000"}',
        b'  "a": {"dtype": "F32", "shape": [1], "shard": "w.safetensors", "crc32": "999999999999"}',
        b'  "a": {"dtype": "F32", "shape": [1], "shard": "w.safetensors", "crc32": 1}',
        b'  "a": {"shape": [1]}',
        b"  nothing",
        b' "a": {"dtype": "F32", "shape": [1], "shard": "w.safetensors", "crc32": "00000000"}',
    ],
)
def test_a_manifest_that_is_whole_and_means_nothing(tmp_path: Path, line: bytes) -> None:
    """Its checksum holds, as of a program that is not lazysd: a fault, and no reason to stop a save."""
    text = SIGNED % line
    (tmp_path / MANIFEST).write_bytes(text + b'\n "crc32": "%08x"\n}\n' % zlib.crc32(text))
    (fault,) = check_folder(tmp_path).faults
    assert fault.file == MANIFEST
    assert "is damaged" in fault.detail
    assert recover(tmp_path).finished == {}


def test_journals_that_mean_nothing(tmp_path: Path) -> None:
    """Lines with their checksums: no shard's name, an endless number, no table, deeper than the stack."""
    path = tmp_path / "journal"
    texts = (
        b'{"plan": "p", "nbytes": 1, "crc32": 2, "tensors": ""}',
        b'{"plan": "p", "shard": "s", "nbytes": 1e999, "crc32": 2, "tensors": ""}',
        b'{"plan": "p", "shard": ["s"], "nbytes": 1, "crc32": 2, "tensors": ""}',
        b'{"plan": "p", "about": 3}',
        b"[" * 100_000,
        b'{"plan": "p", "shard": "t", "nbytes": 1, "crc32": 2, "tensors": "00000001"}',
    )
    path.write_bytes(b"".join(b"%08x %b\n" % (zlib.crc32(text), text) for text in texts))
    notes = Journal(path).read()
    assert notes.about == {}
    assert list(notes.finished) == ["t"]


def test_links_to_folders_are_seen(tmp_path: Path) -> None:
    """os.walk calls them folders and does not enter them, so that nobody had looked at them."""
    lazysd.open({"model.safetensors": save({"w": torch.ones(2)})}).save(tmp_path / "out")
    (tmp_path / "out" / "more").symlink_to(tmp_path)
    assert check_folder(tmp_path / "out").strangers == ["more"]
    home = tmp_path / "models--org--name"
    (home / "blobs").mkdir(parents=True)
    snapshot = home / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blob = home / "blobs" / hashlib.sha256(b"x").hexdigest()
    blob.write_bytes(b"x")
    (snapshot / "model.safetensors").symlink_to(blob)
    (snapshot / "config.json").symlink_to(home / "blobs")
    assert check_snapshot(snapshot).strangers == ["config.json"]

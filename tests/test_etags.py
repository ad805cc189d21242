"""verify of a model in the hub cache: every flipped bit against the etag that names the blob."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from checkpoints import random_hf, write

from lazysd.cli.main import main
from lazysd.errors import MissingShardError
from lazysd.etags import check_snapshot, snapshot_of


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of the cache as huggingface_hub leaves it: weights by SHA-256, small files by git's SHA-1."""
    plain = write(tmp_path / "plain", random_hf(), 2, {"model_type": "qwen3_moe", "num_experts": 3})
    (plain / "original").mkdir()
    (plain / "original" / "params.json").write_text("{}")
    model = tmp_path / "models--org--name"
    snapshot = model / "snapshots" / ("c" * 40)
    (model / "blobs").mkdir(parents=True)
    for path in sorted(path for path in plain.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        small = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
        etag = hashlib.sha256(raw).hexdigest() if path.suffix == ".safetensors" else small
        (model / "blobs" / etag).write_bytes(raw)
        link = snapshot / path.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(model / "blobs" / etag, link.parent))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("c" * 40)
    return model


def test_a_whole_model(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = model / "snapshots" / ("c" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(model.parent))
    monkeypatch.chdir(model.parent)
    for name in ("org/name", str(model), str(snapshot)):
        found = check_snapshot(name)
        assert (found.sound, found.num_sha256, found.num_sha1, found.num_files) == (True, 2, 3, 5)
        assert found.nbytes == sum(path.stat().st_size for path in (model / "blobs").iterdir())
        assert main(["verify", name]) == 0
        assert "is what the hub has: 5 files" in (shown := capsys.readouterr().out)
        assert "SHA-256 of 2, git's SHA-1 of 3" in shown


def test_each_file_with_a_flipped_bit(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = model / "snapshots" / ("c" * 40)
    links = sorted(path for path in snapshot.rglob("*") if path.is_symlink())
    assert len(links) == 5
    for link in links:
        blob, name = Path(os.path.realpath(link)), str(link.relative_to(snapshot))
        good = blob.read_bytes()
        for at in {0, len(good) // 2, len(good) - 1}:
            blob.write_bytes(good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :])
            assert [fault.file for fault in check_snapshot(snapshot).faults] == [name]
        assert main(["verify", str(snapshot), "--json"]) == 1
        assert [fault["file"] for fault in json.loads(capsys.readouterr().out)["faults"]] == [name]
        blob.write_bytes(good[:-1])  # cut off
        assert [fault.file for fault in check_snapshot(snapshot).faults] == [name]
        blob.unlink()
        assert "is missing; fetch the model again" in check_snapshot(snapshot).faults[0].detail
        blob.write_bytes(good)
    assert check_snapshot(snapshot).sound


def test_what_has_no_etag_is_named(model: Path) -> None:
    snapshot = model / "snapshots" / ("c" * 40)
    (snapshot / "notes.txt").write_text("mine")
    (snapshot / "away").symlink_to("/etc/hostname")
    (model / "blobs" / "no-checksum").write_text("x")
    (snapshot / "odd").symlink_to("../../blobs/no-checksum")
    found = check_snapshot(snapshot)
    assert found.sound
    assert sorted(found.strangers) == ["away", "notes.txt", "odd"]
    assert str(found).count("the cache has no etag of it") == 3


def test_what_is_no_snapshot(model: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "plain", model / "blobs", tmp_path / "absent"):
        assert snapshot_of(path) is None
        with pytest.raises(MissingShardError, match="no snapshot of the hub cache"):
            check_snapshot(path)

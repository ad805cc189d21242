"""verify of what came from the hub: every flipped bit against the etag that names the blob, or that a note has."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from checkpoints import random_hf, write
from huggingface_hub._local_folder import write_download_metadata

from lazysd.cli.main import main
from lazysd.errors import MemoryBudgetError, MissingShardError
from lazysd.etags import check_snapshot, snapshot_of

COMMIT = "c" * 40


def plain_model(folder: Path) -> list[tuple[Path, str]]:
    """A model's files, and the etags that the hub has of them: weights by SHA-256, small files by git's SHA-1."""
    write(folder, random_hf(), 2, {"model_type": "qwen3_moe", "num_experts": 3})
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        small = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
        found.append((path, hashlib.sha256(raw).hexdigest() if path.suffix == ".safetensors" else small))
    return found


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A model as `hf download --local-dir` leaves it, by the hub's own code."""
    folder = tmp_path / "local"
    for path, etag in plain_model(folder):
        write_download_metadata(folder, str(path.relative_to(folder)), COMMIT, etag)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of the cache as huggingface_hub leaves it."""
    plain = tmp_path / "plain"
    model = tmp_path / "models--org--name"
    snapshot = model / "snapshots" / COMMIT
    (model / "blobs").mkdir(parents=True)
    for path, etag in plain_model(plain):
        (model / "blobs" / etag).write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(model / "blobs" / etag, link.parent))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return model


def test_a_whole_model(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = model / "snapshots" / (COMMIT)
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
    snapshot = model / "snapshots" / (COMMIT)
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
    snapshot = model / "snapshots" / (COMMIT)
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
        with pytest.raises(MissingShardError, match=r"no snapshot of the hub cache, and .* has left no etags in it"):
            check_snapshot(path)


def test_a_download_into_a_folder(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_snapshot(local)
    assert (found.sound, found.num_sha256, found.num_sha1, found.num_files) == (True, 2, 3, 5)
    assert (found.strangers, found.commits) == ([], {COMMIT: 5})
    assert main(["verify", str(local)]) == 0
    assert "is what the hub has: 5 files" in capsys.readouterr().out
    write_download_metadata(local, "config.json", "d" * 40, check_note(local, "config.json"))
    assert main(["verify", str(local)]) == 0
    assert f"they are of 2 commits: '{COMMIT}', 'dddd" in capsys.readouterr().out


def check_note(local: Path, name: str) -> str:
    return (local / ".cache/huggingface/download" / f"{name}.metadata").read_text().split()[1]


def test_each_file_of_a_folder_with_a_flipped_bit(local: Path) -> None:
    files = [path for path in local.rglob("*") if path.is_file() and ".cache" not in path.parts]
    assert len(files) == 5
    for path in files:
        good, name = path.read_bytes(), str(path.relative_to(local))
        for at in {0, len(good) // 2, len(good) - 1}:
            path.write_bytes(good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :])
            assert [fault.file for fault in check_snapshot(local).faults] == [name]
        path.write_bytes(good[:-1])
        assert [fault.file for fault in check_snapshot(local).faults] == [name]
        path.unlink()
        assert "fetch it again" in {fault.file: fault.detail for fault in check_snapshot(local).faults}[name]
        path.write_bytes(good)
    assert check_snapshot(local).sound


def test_notes_of_others(local: Path, tmp_path: Path) -> None:
    """What is no note leaves its file unchecked, and says so; nothing is read through links, or at length."""
    notes = local / ".cache/huggingface/download"
    good = (notes / "config.json.metadata").read_bytes()
    (tmp_path / "away").write_bytes(good)
    for raw in (b"", b"\xff\xfe", good[:41], good[:60], good.upper(), b"\n" + good, b" " * 10**6 + good, b"x" * 10**6):
        (notes / "config.json.metadata").write_bytes(raw)
        assert (check_snapshot(local).strangers, check_snapshot(local).sound) == (["config.json"], True)
    (notes / "config.json.metadata").unlink()
    for target in (tmp_path / "away", "/dev/zero", tmp_path / "nowhere", notes):
        (notes / "config.json.metadata").symlink_to(target)
        assert check_snapshot(local).strangers == ["config.json"]
        (notes / "config.json.metadata").unlink()
    os.mkfifo(notes / "config.json.metadata")
    assert check_snapshot(local).strangers == ["config.json"]
    (notes / "config.json.metadata").unlink()
    (local / "config.json").rename(tmp_path / "config.json")
    (local / "config.json").symlink_to(tmp_path / "config.json")
    (notes / "config.json.metadata").write_bytes(good)
    assert check_snapshot(local).strangers == ["config.json"]
    (local / ".cache").rename(tmp_path / ".cache")
    (local / ".cache").symlink_to(tmp_path / ".cache")
    assert snapshot_of(local) is None


def test_a_manifest_says_more_than_notes_of_other_files(local: Path) -> None:
    (local / "lazysd.manifest.json").write_text("{}")
    assert snapshot_of(local) is None  # a save has written it since
    write_download_metadata(local, "lazysd.manifest.json", COMMIT, hashlib.sha1(b"blob 2\0{}").hexdigest())
    assert check_snapshot(local).num_files == 6  # it has been fetched with the rest


def test_a_budget(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MemoryBudgetError, match=r"too little to check 5 files; .* would do is (\d+)MB") as refused:
        check_snapshot(local, max_memory=1000)
    smallest = str(refused.value).rpartition(" ")[2]
    assert main(["verify", str(local), "--max-memory", smallest, "--workers", "64"]) == 0
    index = local / "model.safetensors.index.json"
    index.write_bytes(index.read_bytes() + b" " * 10_000_000)
    with pytest.raises(MemoryBudgetError, match=r"would do is [67]\d"):
        check_snapshot(local, max_memory=smallest)
    assert check_snapshot(local).faults[0].file == index.name
    capsys.readouterr()

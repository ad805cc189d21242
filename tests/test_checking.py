"""verify DIR: every flipped bit is found and named, against nothing but the folder's own manifest."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import random_hf, write

import lazysd
from lazysd import checking
from lazysd.checking import check_folder
from lazysd.cli.main import main
from lazysd.errors import MemoryBudgetError, MissingShardError
from lazysd.move import summing
from lazysd.save import manifest


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("checking")
    src = write(at / "src", random_hf(layers=2), config={"model_type": "qwen3_moe", "num_experts": 3})
    (src / "tokenizer.json").write_text('{"a": 1}')
    (src / "sub").mkdir()
    (src / "sub" / "x.json").write_text("{}")
    lazysd.open(src).save(at / "out", max_shard_size=600)
    return at / "out"


def test_a_whole_folder(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_folder(written)
    assert found.sound
    assert found.num_tensors == len(lazysd.open(written))
    assert found.strangers == []
    assert found.nbytes == sum(p.stat().st_size for p in written.rglob("*") if p.is_file() and "manifest" not in p.name)
    assert main(["verify", str(written)]) == 0
    assert f"verified: {written} is as it was written: {found.num_tensors} tensors" in capsys.readouterr().out
    assert main(["verify", str(written), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True


def test_every_byte_of_every_file(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)
    spots = [(path, at) for path in sorted(copy.rglob("*")) if path.is_file() for at in _places(path)]
    assert len(spots) > 200
    for number, (path, at) in enumerate(spots):
        data = bytearray(path.read_bytes())
        data[at] ^= 1 << number % 8
        path.write_bytes(data)
        found = check_folder(copy)
        assert {fault.file for fault in found.faults} == {str(path.relative_to(copy))}, (path, at)
        data[at] ^= 1 << number % 8
        path.write_bytes(data)
    assert check_folder(copy).sound


def _places(path: Path) -> list[int]:
    size = path.stat().st_size
    return sorted({0, size - 1, *range(0, size, max(1, size // 40))})


def test_a_changed_tensor_is_named(written: Path, tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)
    key = "model.layers.1.mlp.experts.2.up_proj.weight"
    (file, offset, _), *_ = lazysd.open(copy)[key].reads()
    path = Path(file)
    data = bytearray(path.read_bytes())
    data[offset + 3] ^= 4
    path.write_bytes(data)
    assert [(fault.file, fault.what) for fault in check_folder(copy).faults] == [(path.name, key)]
    assert main(["verify", str(copy)]) == 1
    out = capsys.readouterr().out
    assert "DAMAGED" in out
    assert f"{path.name}: {key}: its bytes are not those that were written" in out


def test_files_that_come_and_go(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)
    (copy / "new.txt").write_text("x")
    assert check_folder(copy).strangers == ["new.txt"]
    assert check_folder(copy).sound
    shutil.move(copy / "tokenizer.json", tmp_path / "t.json")
    (copy / "tokenizer.json").symlink_to(tmp_path / "t.json")
    assert [fault.detail.split(";")[0] for fault in check_folder(copy).faults] == ["is a link"]
    (copy / "tokenizer.json").unlink()
    assert [fault.detail.split(";")[0] for fault in check_folder(copy).faults] == ["is missing"]
    (copy / "tokenizer.json").write_text("longer than before")
    assert "bytes" in check_folder(copy).faults[0].detail


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_pieces_of_any_size(written: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "PIECE_NBYTES", piece * 16)
    monkeypatch.setattr(summing, "BUFFER_NBYTES", piece)
    assert check_folder(written, num_workers=3).sound


def test_shards_are_read_in_as_many_steps_as_the_budget_asks_for(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few tensors known at a time, or all: the same result, sound or damaged, and progress to the last byte."""
    sound = tmp_path / "sound"
    lazysd.open(written).save(sound, max_shard_size=100)
    shutil.copytree(sound, tmp_path / "copy")
    with open(next(tmp_path.glob("copy/*00003-of*")), "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xa5")
    wholes = {path: check_folder(path) for path in (sound, tmp_path / "copy")}
    assert [found.sound for found in wholes.values()] == [True, False]
    names = {entry.shard for entry in manifest.entries(sound)}
    assert len(names) > 5
    sizes: list[int] = []
    real = checking.sums_of
    monkeypatch.setattr(checking, "_TENSOR_NBYTES", 1_000_000)
    monkeypatch.setattr(
        checking, "sums_of", lambda at, spans, *rest: (sizes.append(len(spans)), real(at, spans, *rest))[1]
    )
    for path, whole in wholes.items():
        steps: list[tuple[int, int]] = []
        sizes.clear()
        assert check_folder(path, 2, lambda *step, steps=steps: steps.append(step), "16MB") == whole
        assert len(sizes) > 3
        assert steps[-1] == (whole.nbytes, whole.nbytes)
    with pytest.raises(MemoryBudgetError, match="smallest that would do is"):
        check_folder(sound, max_memory="9MB")
    assert main(["verify", str(sound), "--max-memory", "9MB"]) == 2


def test_without_a_manifest(tmp_path: Path, capsys: Any) -> None:
    src = write(tmp_path / "src", {"w": torch.ones(2)})
    with pytest.raises(MissingShardError, match=r"lazysd\.manifest\.json"):
        check_folder(src)
    assert main(["verify", str(src)]) == 3
    assert main(["verify", str(src), "--to", "hf"]) == 3
    assert "need --against SRC" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b'{"shards": {}, "tensors": {"a": 3}}', b"[" * 100_000]
)
def test_a_manifest_that_is_none(tmp_path: Path, content: bytes, capsys: Any) -> None:
    src = write(tmp_path / "src", {"w": torch.ones(2)})
    (src / "lazysd.manifest.json").write_bytes(content)
    assert main(["verify", str(src)]) == 1
    assert "lazysd.manifest.json" in capsys.readouterr().out


def test_a_manifest_with_a_checksum_of_its_own_and_nonsense_in_it(tmp_path: Path) -> None:
    src = write(tmp_path / "src", {"w": torch.ones(2)})
    for files in (
        '{"a": {}}',
        '{"a": 3}',
        '{"../../etc/passwd": {"nbytes": 3, "crc32": "00000000"}}',
        '{"a": {"nbytes": "x", "crc32": "0"}}',
    ):
        head = f'{{\n "files": {files},\n "shards": {{}},\n "tensors": {{\n }},'.encode()
        (src / "lazysd.manifest.json").write_bytes(head + f'\n "crc32": "{zlib.crc32(head):08x}"\n}}\n'.encode())
        assert not check_folder(src).sound

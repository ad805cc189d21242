"""verify DIR: every flipped bit is found and named, against nothing but the folder's own manifest."""

from __future__ import annotations

import errno
import json
import os
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
from lazysd.errors import MemoryBudgetError, MissingShardError, ReadError
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


@pytest.mark.parametrize(("format", "step"), [("safetensors", 1), ("dcp", 97)])
def test_every_bit_of_every_file(tmp_path: Path, format: str, step: int) -> None:
    """Each is found, and the file named that it is in; in a tensor's bytes, the tensor. (Of dcp, each was once.)"""
    src = write(tmp_path / "src", {"a": torch.arange(3.0), "": torch.ones(1)}, config={"model_type": "qwen3_moe"})
    (src / "tokenizer.json").write_text("{}")
    (src / "sub").mkdir()
    (src / "sub" / "x.json").write_text("{}")
    out = tmp_path / "out"
    lazysd.open(src).save(out, max_shard_size=12, format=format)
    owners = {
        (Path(file).name, at): key
        for key, tensor in lazysd.open(out).items()
        for file, start, nbytes in tensor.reads()
        for at in range(start, start + nbytes)
    }
    assert check_folder(out).sound
    num_bits = 0
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name, raw = str(path.relative_to(out)), path.read_bytes()
        with open(path, "r+b", buffering=0) as file:
            for bit in range(0, 8 * len(raw), step):
                at = bit // 8
                os.pwrite(file.fileno(), bytes([raw[at] ^ 1 << bit % 8]), at)
                faults = check_folder(out, 1).faults
                assert {fault.file for fault in faults} == {name}, (name, bit, faults)
                if key := owners.get((name, at)):
                    assert [fault.what for fault in faults] == [key], (name, bit)
                elif name.endswith(".safetensors") and (name, at) not in owners:
                    assert {fault.what for fault in faults} - {"a"}, (name, bit)
                os.pwrite(file.fileno(), raw[at : at + 1], at)
                num_bits += 1
    assert num_bits > (8000 if step == 1 else 200)
    assert check_folder(out).sound


def test_shards_that_are_others(tmp_path: Path) -> None:
    """Cut, longer, exchanged, renamed, there twice, of zeros, a folder in their place: each is found and named."""
    same = {"a": torch.ones(3), "b": torch.zeros(3), "c": torch.ones(3)}
    out = tmp_path / "out"
    lazysd.Checkpoint({key: lazysd.from_torch(value) for key, value in same.items()}).save(out, max_shard_size=12)
    first, second, third = (out / f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))

    def faults() -> dict[str, str]:
        return {fault.file: fault.detail for fault in check_folder(out).faults}

    def exchange() -> None:
        os.rename(first, out / "x")
        os.rename(second, first)
        os.rename(out / "x", second)

    raw = first.read_bytes()
    for changed in (raw[:-1], raw + b"\0", b"", raw[:8]):
        first.write_bytes(changed)
        assert faults() == {first.name: f"has {len(changed):,} bytes, {len(raw):,} were written"}
    first.write_bytes(bytes(len(raw)))
    assert list(faults()) == [first.name]
    first.write_bytes(third.read_bytes())  # the same values under another name
    assert list(faults()) == [first.name]
    first.write_bytes(raw)
    exchange()
    assert set(faults()) == {first.name, second.name}
    exchange()
    os.rename(second, out / "model-00004-of-00003.safetensors")
    assert faults() == {second.name: f"is missing; {len(raw)} B were written"}
    assert check_folder(out).strangers == ["model-00004-of-00003.safetensors"]
    second.mkdir()
    assert list(faults()) == [second.name]


def test_a_file_that_cannot_be_read(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's own error, under the name of the file."""

    def failing(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(summing, "read_at", failing)
    with pytest.raises(ReadError, match=r"cannot read \S+/out/model-\S+ from byte 0 on: Input/output error"):
        check_folder(written)


def test_a_manifest_that_is_a_link(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)
    (copy / manifest.MANIFEST).unlink()
    (copy / manifest.MANIFEST).symlink_to(written / manifest.MANIFEST)
    (fault,) = check_folder(copy).faults
    assert (fault.file, "is a link" in fault.detail) == (manifest.MANIFEST, True)


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

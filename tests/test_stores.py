"""The stores, each through the suite that all of them pass; and that a broken one fails it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import lazysd
from lazysd.errors import FormatError, MissingShardError, UnsafePathError
from lazysd.stores.base import Options, Parts, Store
from lazysd.stores.folder import LocalStore
from lazysd.stores.local import LocalFile
from lazysd.stores.memory import MemoryFile, MemoryStore
from lazysd.stores.places import members, place_of
from lazysd.testing.conformance.stores import StoreSuite


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


class TestLocal(StoreSuite):
    def make(self, files: Mapping[str, bytes], tmp_path: Path) -> Store:
        return LocalStore(write(files, tmp_path / "folder"))

    def change(self, name: str, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "folder" / name).write_bytes(data)


class TestPread(TestLocal):
    def make(self, files: Mapping[str, bytes], tmp_path: Path) -> Store:
        return LocalStore(write(files, tmp_path / "folder"), Options(io="pread"))


class TestMemory(StoreSuite):
    changes = False

    def make(self, files: Mapping[str, bytes], tmp_path: Path) -> Store:
        return MemoryStore(files)


BROKEN = """
from lazysd.stores.memory import MemoryFile, MemoryStore
from lazysd.testing.conformance.stores import StoreSuite

class Sloppy(MemoryFile):
    {broken}

class SloppyStore(MemoryStore):
    def open(self, name):
        return Sloppy(super().open(name).data, name)
    {store}

class TestSloppy(StoreSuite):
    changes = False
    def make(self, files, tmp_path):
        return SloppyStore(files)
"""


@pytest.mark.parametrize(
    ("broken", "store", "caught"),
    [
        ("pass", "pass", ""),
        ("def _fill(self, parts):\n        super()._fill(parts[:1])", "pass", "reads_many_parts"),
        ("def _fill(self, parts):\n        super()._fill([(b, max(0, o - 1)) for b, o in parts])", "pass", "any_range"),
        ("def close(self):\n        pass", "pass", "closed_file"),
        ("identity = property(lambda self: (object(),))", "pass", "identity"),
        ("_map = lambda self, offset, nbytes: memoryview(bytearray(nbytes))", "pass", "views"),
        ("pass", "def has(self, name):\n        return True", "knows_what_it_has"),
        ("pass", "def list(self):\n        return super().list()._replace(files=())", "lists_every_file"),
    ],
)
def test_a_broken_store_fails_the_suite(tmp_path: Path, broken: str, store: str, caught: str) -> None:
    (tmp_path / f"test_sloppy_{caught}.py").write_text(BROKEN.format(broken=broken, store=store))
    done = pytest.main(
        [
            "-q",
            "--import-mode=importlib",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "--tb=no",
            str(tmp_path),
            "-c",
            os.devnull,
        ]
    )
    assert (done == pytest.ExitCode.OK) == (not caught), caught


def test_members_are_found_by_looking() -> None:
    ranks = [member.rank for member in members()]
    assert ranks == sorted(ranks)
    assert {"Memory", "Local"} <= {type(member).__name__ for member in members()}
    with pytest.raises(TypeError, match=r"cannot open int: expected a path, bytes, or a mapping"):
        place_of(3, Options())


def test_a_checkpoint_in_memory_opens_converts_and_saves(golden: Path, tmp_path: Path) -> None:
    source = golden / "qwen3_moe_tiny"
    files = {path.name: path.read_bytes() for path in source.iterdir()} | {"deep/notes.txt": b"kept", ".hidden": b"x"}
    ckpt = lazysd.open(files)
    assert (ckpt.path, ckpt.layout) == ("memory:", "hf")
    assert ckpt.remarks == ("not read and not copied from memory:, hidden: '.hidden'",)
    ckpt.convert("nemo").save(tmp_path / "from_memory")
    lazysd.open(source).convert("nemo").save(tmp_path / "from_disk")
    made = {path: load_file(tmp_path / path / "model.safetensors") for path in ("from_memory", "from_disk")}
    assert made["from_memory"].keys() == made["from_disk"].keys()
    assert all(torch.equal(tensor, made["from_disk"][key]) for key, tensor in made["from_memory"].items())
    assert (tmp_path / "from_memory" / "config.json").read_bytes() == files["config.json"]
    assert (tmp_path / "from_memory" / "deep" / "notes.txt").read_bytes() == b"kept"
    assert not (tmp_path / "from_memory" / ".hidden").exists()


def test_bytes_alone_are_a_file(tmp_path: Path) -> None:
    data = save({"w": torch.arange(6.0).reshape(2, 3)})
    for given in (data, bytearray(data), memoryview(data)):
        assert torch.equal(lazysd.open(given)["w"].materialize(), torch.arange(6.0).reshape(2, 3))
    changing = bytearray(data)
    ckpt = lazysd.open(changing)
    changing[-1] ^= 255
    assert ckpt["w"][1, 2].materialize() == 5
    (tmp_path / "m.safetensors").write_bytes(data)
    assert list(lazysd.open(os.fsencode(tmp_path / "m.safetensors"))) == ["w"]
    with pytest.raises(UnsafePathError, match="expected a plain file name"):
        lazysd.open({"../x": data})
    with pytest.raises(FormatError, match="truncated"):
        lazysd.open(data[:-1])
    with pytest.raises(MissingShardError, match="found none"):
        lazysd.open({})


def test_few_descriptors_are_held(tmp_path: Path) -> None:
    """1,000 shards, mapped and read, under a limit of 256 descriptors; the maps outlive the handles."""
    (tmp_path / "src").mkdir()
    for number in range(1000):
        save_file(
            {f"t.{number}": torch.tensor([float(number)])},
            tmp_path / "src" / f"m-{number + 1:05d}-of-01000.safetensors",
        )
    code = f"""if True:
        import resource, os, lazysd, torch
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        for io in ("mmap", "pread"):
            ckpt = lazysd.open({str(tmp_path / "src")!r}, io=io)
            held = [ckpt[f"t.{{n}}"].materialize() for n in range(1000)]
            assert [int(t[0]) for t in held] == list(range(1000))
            assert len(os.listdir("/proc/self/fd")) < 140, len(os.listdir("/proc/self/fd"))
            assert [int(ckpt[f"t.{{n}}"].materialize()[0]) for n in range(1000)] == list(range(1000))
        ckpt.save({str(tmp_path / "out")!r})
        print(sum(int(t.materialize()[0]) for t in lazysd.open({str(tmp_path / "out")!r}).values()))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("499500\n", "")


def test_a_map_goes_with_its_last_view(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(1 << 20))

    def mapped() -> bool:
        return str(tmp_path / "f") in Path("/proc/self/maps").read_text()

    file = LocalFile(str(tmp_path / "f"))
    view = file.view(0, 10)
    assert view is not None
    tensor = torch.frombuffer(view, dtype=torch.uint8)[2:]
    assert mapped()
    file.close()
    del view, file
    tensor[0] = 1
    assert mapped()
    del tensor
    assert not mapped()


def test_a_read_counts_where_it_is_made() -> None:
    """`recorded_reads` and tests hook `File.read`: a store must not read data past it."""
    calls: list[Parts] = []

    class Noted(MemoryFile):
        def read(self, parts: Parts) -> None:
            calls.append(parts)
            super().read(parts)

    Noted(b"abc").text(0, 2)
    assert calls == []

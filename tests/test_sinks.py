"""What checkpoints are written as: one plan, journal and rename; dcp.load and torch.load read the rest."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import lazysd
from lazysd.cli.main import main
from lazysd.errors import ReadError
from lazysd.formats import sinks
from lazysd.formats.dcp.archive import ALIGN_NBYTES, frame
from lazysd.stores.base import File, Parts
from lazysd.testing import assert_same_bytes

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]


def loaded(folder: Path, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What dcp.load reads."""
    state = {key: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for key, t in like.items()}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def everything() -> dict[str, torch.Tensor]:
    state = {
        str(dtype): torch.randint(0, 2, (3, 4)).to(dtype) if dtype.itemsize > 1 or dtype is torch.bool
        else torch.arange(12, dtype=torch.uint8).view(dtype).reshape(3, 4)
        for dtype in DTYPES
    }  # fmt: skip
    return state | {"scalar": torch.tensor(2.5), "a.b": torch.randn(300, 7), "one": torch.randn(1, 1, 5)}


def test_members_are_found_by_looking() -> None:
    assert set(sinks.members()) == {"safetensors", "dcp"}
    with pytest.raises(ValueError, match="cannot write a checkpoint as 'gguf': expected one of dcp, safetensors"):
        sinks.get("gguf")


@pytest.mark.parametrize("shard", ["5GB", "300", "1"])
def test_dcp_load_reads_every_dtype(tmp_path: Path, shard: str) -> None:
    state = everything()
    save_file(state, tmp_path / "m.safetensors")
    lazysd.open(tmp_path / "m.safetensors").save(tmp_path / "dcp", max_shard_size=shard, format="dcp")
    names = {path.name for path in (tmp_path / "dcp").iterdir()}
    assert {".metadata", "lazysd.manifest.json", "__0_0.distcp"} <= names
    assert ("__0_1.distcp" in names) == (shard != "5GB")
    assert_same_bytes(loaded(tmp_path / "dcp", state), state)
    again = lazysd.open(tmp_path / "dcp")
    assert_same_bytes(again, state)
    assert all(node.op.offset % ALIGN_NBYTES == 0 for node in again.values() if hasattr(node.op, "offset"))
    again.save(tmp_path / "back")
    assert_same_bytes(load_file(tmp_path / "back" / "model.safetensors"), state)


def test_a_conversion_to_it_and_back(golden: Path, tmp_path: Path) -> None:
    """Tensors that share rows of the source are read once, though their bytes do not touch in the result."""
    source = golden / "qwen3_moe_tiny"
    lazysd.open(source).convert("nemo").save(tmp_path / "nemo", format="dcp")
    expected = {key: node.materialize() for key, node in lazysd.open(source).convert("nemo").items()}
    assert_same_bytes(loaded(tmp_path / "nemo", expected), expected)
    assert (tmp_path / "nemo" / "config.json").exists()
    count = [0]
    read = File.read

    def counted(self: File, parts: Parts) -> None:
        count[0] += sum(len(buffer) for buffer, _ in parts)
        read(self, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(File, "read", counted)
        plan = lazysd.open(tmp_path / "nemo").convert("hf").save(tmp_path / "hf", format="dcp")
    assert count[0] == plan.read_nbytes == lazysd.open(source).nbytes
    assert_same_bytes(lazysd.open(tmp_path / "hf"), dict(lazysd.open(source)))


def test_the_command_line(golden: Path, tmp_path: Path) -> None:
    source = str(golden / "qwen3_moe_tiny")
    assert main(["convert", source, str(tmp_path / "out"), "--to", "nemo", "--format", "dcp", "--verify"]) == 0
    assert (tmp_path / "out" / ".metadata").exists()
    assert main(["plan", source, "--to", "nemo", "--format", "dcp"]) == 0
    with pytest.raises(ValueError, match="names one safetensors file"):
        lazysd.open(source).save(tmp_path / "x.safetensors", format="dcp")


def test_it_resumes_and_its_checksums_hold(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lazysd.stores import output_folder

    out = lazysd.open(golden / "qwen3_moe_tiny").convert("nemo")
    out.save(tmp_path / "expected", max_shard_size="20KB", format="dcp")
    finish, finished = output_folder.OutputFolder.finish_shard, []

    def fails(self: Any, name: str, *args: Any) -> None:
        if len(finished) == 2:
            raise ReadError("gone")
        finished.append(name)
        finish(self, name, *args)

    with monkeypatch.context() as patch:
        patch.setattr(output_folder.OutputFolder, "finish_shard", fails)
        with pytest.raises(ReadError, match="gone"):
            out.save(tmp_path / "out", max_shard_size="20KB", workers=1, format="dcp")
    out.save(tmp_path / "out", max_shard_size="20KB", workers=1, format="dcp")
    for path in (tmp_path / "expected").glob("*.distcp"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    manifest = json.loads((tmp_path / "out" / "lazysd.manifest.json").read_text())
    assert {name for name in manifest["files"] if name.endswith(".distcp")} >= {"__0_0.distcp", "__0_1.distcp"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4))
def test_an_archive_is_what_torch_load_and_zip_read(dtype: torch.dtype, dims: list[int]) -> None:
    from zlib import crc32

    from lazysd import dtypes

    tensor = torch.zeros(dims, dtype=dtype)
    data = bytes(range(251)) * 400
    data = data[: tensor.nbytes]
    before, behind = frame(dtypes.from_torch(dtype), tuple(dims), len(data), crc32(data))
    assert len(before) % ALIGN_NBYTES == 0
    whole = before + data + behind
    assert zipfile.ZipFile(io.BytesIO(whole)).testzip() is None
    found = torch.load(io.BytesIO(whole), weights_only=True)
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert bytes(found.flatten().view(torch.uint8).tolist() if found.numel() else b"") == data


def test_a_tensor_of_more_than_four_gigabytes_has_its_place(tmp_path: Path) -> None:
    """Sizes beyond 32 bits stand in fields of their own; the data is a hole that nobody writes."""
    dims = (1 << 32) + 5, 1
    before, behind = frame("U8", dims, dims[0], 0)
    path = tmp_path / "big.pt"
    with open(path, "wb") as file:
        file.write(before)
        file.truncate(len(before) + dims[0])
        file.seek(0, io.SEEK_END)
        file.write(behind)
    (info,) = (item for item in zipfile.ZipFile(path).infolist() if item.filename.endswith("data/0"))
    assert (info.file_size, info.compress_size) == (dims[0], dims[0])
    found = torch.load(path, weights_only=True, mmap=True)
    assert tuple(found.shape) == dims


def test_verify_names_what_changed_in_it(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = everything() | {"none": torch.zeros(0, 3)}
    save_file(state, tmp_path / "m.safetensors")
    lazysd.open(tmp_path / "m.safetensors").save(tmp_path / "dcp", max_shard_size="500", format="dcp")
    assert main(["verify", str(tmp_path / "dcp")]) == 0
    path = tmp_path / "dcp" / "__0_1.distcp"
    whole = bytearray(path.read_bytes())
    node = next(node for node in lazysd.open(tmp_path / "dcp").values() if node.reads()[0][0] == str(path))
    key = next(key for key, other in lazysd.open(tmp_path / "dcp").items() if other.reads() == node.reads())
    for at, named in ((node.reads()[0][1], key), (4, "header"), (len(whole) - 1, "__0_1.distcp")):
        path.write_bytes(bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]))
        capsys.readouterr()
        assert main(["verify", str(tmp_path / "dcp")]) == 1
        assert named in capsys.readouterr().out
    path.write_bytes(whole)
    damaged = bytearray((tmp_path / "dcp" / ".metadata").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "dcp" / ".metadata").write_bytes(damaged)
    assert main(["verify", str(tmp_path / "dcp")]) == 1
    assert ".metadata" in capsys.readouterr().out


def test_verify_knows_packed_values(tmp_path: Path) -> None:
    packed = torch.arange(48, dtype=torch.uint8).reshape(8, 6).view(torch.float4_e2m1fn_x2)
    save_file({"w": packed, "x": torch.ones(3)}, tmp_path / "m.safetensors")
    lazysd.open(tmp_path / "m.safetensors").save(tmp_path / "out")
    assert main(["verify", str(tmp_path / "out")]) == 0

"""Folders of torch.distributed.checkpoint: opened without torch, converted in one command, hostile ones refused."""

from __future__ import annotations

import enum
import io
import os
import pickle
import random
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoints import assert_same, by_hand, random_hf
from gloo import run_ranks
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

import lazysd
from lazysd.errors import (
    FormatError,
    LazysdError,
    MemoryBudgetError,
    MissingShardError,
    UnsafePathError,
    UnsupportedCheckpointError,
)
from lazysd.formats.base import Chunk, StoredTensor
from lazysd.formats.dcp.reading import _NAMES, AGAIN, _described
from lazysd.formats.pickles import TIMES, unpickle
from lazysd.graph.assemble import assemble
from lazysd.stores.local import LocalFile
from lazysd.tensor.lazy import LazyTensor

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")
E, H, I = 5, 8, 6  # noqa: E741
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]


def save(state: dict[str, Any], folder: Path) -> Path:
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def nemo_state(hf: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The checkpoint a NeMo training run would save, by plain torch."""
    grouped = {key: tensor.contiguous().view(torch.bfloat16) for key, tensor in by_hand(hf, E)["nemo"].items()}
    return {key: tensor for key, tensor in hf.items() if ".experts." not in key} | grouped


def cli(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lazysd", *map(str, args)], capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(nemo_state(random_hf(E, H, I)), tmp_path / "dcp")


def test_a_trained_checkpoint_converts_to_hf_in_one_command(folder: Path, tmp_path: Path) -> None:
    done = cli("convert", folder, tmp_path / "hf", "--to", "hf", "--verify")
    assert done.returncode == 0, done.stderr
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), random_hf(E, H, I))
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names == {"model.safetensors", "lazysd.manifest.json"}  # nothing of the DCP folder is taken along


def test_side_files_beside_it_are_taken_along(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen3_moe", "num_experts": 5}')
    (folder / "tokenizer.json").write_text("{}")
    ckpt = lazysd.open(folder)
    assert (ckpt.layout, ckpt.config) == ("nemo", {"model_type": "qwen3_moe", "num_experts": 5})
    ckpt.convert("hf").save(tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer.json").exists()
    assert lazysd.open(folder / ".metadata").keys() == ckpt.keys()


def test_opening_reads_no_data_and_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys, lazysd\n"
        f"ckpt = lazysd.open({str(folder)!r})\n"
        "print(ckpt.layout, len(ckpt), ckpt.convert('hf').plan().num_tensors, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("nemo 5 18 False\n", "")
    shown = cli("inspect", folder)
    assert shown.returncode == 0
    assert "gate_and_up_projs" in shown.stdout


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
        "parameter": torch.nn.Parameter(torch.randn(3)), "one": torch.randn(1, 4, 1).transpose(0, 1),
    }  # fmt: skip
    ckpt = lazysd.open(save(state, tmp_path / "dcp"), io=mode)
    assert list(ckpt) == list(state)
    for key, tensor in state.items():
        found = ckpt[key].materialize()
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype), key
        raw = [value.detach().contiguous().flatten().view(torch.uint8) for value in (found, tensor)]
        assert torch.equal(*raw), key
    turned = ckpt["turned"]
    assert torch.equal(turned[1:3, ::2].materialize(), state["turned"][1:3, ::2])
    assert sum(nbytes for *_, nbytes in turned.reads()) == turned.nbytes


def test_nested_state_dicts_and_entries_that_are_no_tensors(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    state = {"model": nemo_state(random_hf(E, H, I)), "optim": optimizer.state_dict(), "epoch": 3, "tags": ["a", {1}]}
    folder = save(state, tmp_path / "dcp")
    ckpt = lazysd.open(folder)
    (remark,) = ckpt.remarks
    assert "what is no tensor is left out, 14 pickled objects: 'optim." in remark
    weights = ckpt.select("model.*").rename(lambda key: key.removeprefix("model."))
    assert_same(weights.convert("hf"), random_hf(E, H, I))
    moments = [key for key in ckpt if key.endswith("exp_avg")]
    assert len(moments) == 2
    done = cli("convert", folder, tmp_path / "out", "--to", "hf", "--include", "model.*")
    assert done.returncode == 0, done.stderr
    assert f"{folder}: " in done.stderr
    assert "is left out" in done.stderr
    assert_same(
        {key.removeprefix("model."): t for key, t in load_file(tmp_path / "out" / "model.safetensors").items()},
        random_hf(E, H, I),
    )


def test_safetensors_beside_it_come_first(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, folder / "model.safetensors")
    assert list(lazysd.open(folder)) == ["x"]


# Chunks.


@given(st.data())
def test_any_tiling_is_put_together(data: st.DataObject) -> None:
    """Boxes cut at random, some of them across others' cuts; the oracle is numbering the elements."""
    dims = tuple(data.draw(st.lists(st.integers(1, 5), min_size=0, max_size=3)))
    boxes = [tuple(range(size) for size in dims)]
    for _ in range(data.draw(st.integers(0, 5)) if dims else 0):
        box = boxes.pop(data.draw(st.integers(0, len(boxes) - 1)))
        axis = data.draw(st.integers(0, len(dims) - 1))
        at = data.draw(st.integers(0, len(box[axis])))
        parts = [(*box[:axis], part, *box[axis + 1 :]) for part in (box[axis][:at], box[axis][at:]) if part]
        boxes += parts
    tensor, chunks = _written(dims, boxes)
    node = assemble(LazyTensor, "x", tensor)
    whole = torch.arange(max(1, len(torch.empty(dims).flatten())), dtype=torch.int32).reshape(dims)
    assert torch.equal(node.materialize(), whole)
    if len(chunks) > 1:
        del chunks[data.draw(st.integers(0, len(chunks) - 1))]
        with pytest.raises(FormatError, match="parts do not make up"):
            assemble(LazyTensor, "x", tensor._replace(chunks=tuple(chunks)))


def _written(dims: tuple[int, ...], boxes: list[tuple[range, ...]]) -> tuple[StoredTensor, list[Chunk]]:
    """The boxes of a tensor of numbered elements, one after the other in a file that is never closed but unlinked."""
    import tempfile

    whole = torch.arange(max(1, len(torch.empty(dims).flatten())), dtype=torch.int32).reshape(dims)
    with tempfile.NamedTemporaryFile(delete=False) as file:
        parts = [whole[tuple(slice(axis.start, axis.stop) for axis in box)].contiguous() for box in boxes]
        offsets = [0]
        for part in parts:
            file.write(part.numpy().tobytes())
            offsets.append(offsets[-1] + part.nbytes)
    source = LocalFile(file.name, io="pread")
    source.read([(memoryview(bytearray()), 0)])  # opens it
    os.unlink(file.name)
    chunks = [
        Chunk(source, offset, tuple(a.start for a in box), tuple(map(len, box)))
        for offset, box in zip(offsets, boxes, strict=False)
    ]
    return StoredTensor("I32", dims, tuple(chunks)), chunks


def save_sharded(folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    n = dist.get_world_size()
    line = dist.init_device_mesh("cpu", (n,), mesh_dim_names=("x",))
    grid = dist.init_device_mesh("cpu", (1, n), mesh_dim_names=("a", "b"))
    state: dict[str, Any] = {}
    for number, (key, tensor) in enumerate(nemo_state(random_hf(E, H, I)).items()):
        axis = number % tensor.ndim
        state[key] = distribute_tensor(tensor, line, [Shard(axis)])
    state["copied"] = distribute_tensor(torch.arange(12.0).reshape(3, 4), grid, [Shard(0), Replicate()])
    state["twice"] = distribute_tensor(torch.arange(35.0).reshape(5, 7), grid, [Shard(0), Shard(1)])
    state["fewer"] = distribute_tensor(torch.arange(2.0), line, [Shard(0)])  # than three ranks: one holds nothing
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 5)
    state["weight"] = model.weight.detach().clone()
    fully_shard(model, mesh=line)
    state["fsdp"] = model.state_dict()
    state["rank"] = {"of": n}
    dcp.save(state, checkpoint_id=folder / "dcp")
    hf = lazysd.open(folder / "dcp").select("model.*").convert("hf")
    lazysd.distributed.save(hf, folder / "hf", max_shard_size=1000)


@pytest.mark.dist
@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_of_several_ranks(tmp_path: Path, world_size: int) -> None:
    reports = run_ranks("test_dcp", ["save_sharded"], world_size, tmp_path)["save_sharded"]
    assert not any(reports), "\n".join(reports)
    folder = tmp_path / "save_sharded" / "dcp"
    assert len(list(folder.glob("*.distcp"))) > 1
    ckpt = lazysd.open(folder)
    hf = random_hf(E, H, I)
    assert_same(ckpt.select("model.*"), nemo_state(hf))
    assert torch.equal(ckpt["copied"].materialize(), torch.arange(12.0).reshape(3, 4))
    assert torch.equal(ckpt["twice"].materialize(), torch.arange(35.0).reshape(5, 7))
    assert torch.equal(ckpt["fewer"].materialize(), torch.arange(2.0))
    assert torch.equal(ckpt["fsdp.weight"].materialize(), ckpt["weight"].materialize())
    assert_same(lazysd.open(folder.parent / "hf"), hf)  # converted by the ranks that trained
    down = ckpt["model.layers.0.mlp.experts.down_projs"]
    assert sum(nbytes for *_, nbytes in down[2].reads()) == down[2].nbytes  # an expert, not its rank's chunk
    done = cli("convert", folder, tmp_path / "hf", "--to", "hf", "--include", "model.*", "--verify")
    assert done.returncode == 0, done.stderr
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), hf)
    plan = ckpt.select("model.*").convert("hf").plan()
    assert plan.read_nbytes == sum(tensor.nbytes for tensor in hf.values())


# Folders that nobody vouches for.


class Evil:
    """A pickle of this runs a command."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place}",)


def rewritten(folder: Path, change: Callable[[Any], Any]) -> None:
    """The folder's metadata, changed."""
    path = folder / ".metadata"
    meta = pickle.loads(path.read_bytes())
    changed = change(meta)
    path.write_bytes(pickle.dumps(meta if changed is None else changed))


def test_a_hostile_metadata_pickle_is_refused_and_does_not_run(folder: Path, tmp_path: Path) -> None:
    sentinel, good = tmp_path / "ran", (folder / ".metadata").read_bytes()
    for where in ("whole", "planner_data", "storage_meta"):
        if where == "whole":
            (folder / ".metadata").write_bytes(pickle.dumps(Evil(sentinel)))
        else:
            (folder / ".metadata").write_bytes(good)
            rewritten(folder, lambda meta, where=where: setattr(meta, where, Evil(sentinel)))
        with pytest.raises(UnsupportedCheckpointError, match=r"asks for '(posix|os)\.system'.*does not run code"):
            lazysd.open(folder)
        assert not sentinel.exists()
    pickle.loads((folder / ".metadata").read_bytes())
    assert sentinel.exists()  # it would have
    done = cli("inspect", folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)


@pytest.mark.parametrize("name", ["builtins eval", "builtins setattr", "torch load", "torch.storage _load_from_bytes"])
def test_no_other_name_is_looked_up(folder: Path, name: str) -> None:
    module, attribute = name.split()
    code = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
    code += b"\x8c" + bytes([len(attribute)]) + attribute.encode() + b"\x93."
    (folder / ".metadata").write_bytes(code)
    with pytest.raises(UnsupportedCheckpointError, match=rf"asks for '{module}\.{attribute}'"):
        lazysd.open(folder)


class ByName(pickle.Pickler):
    """Writes members of enumerations as Python 3.11.0 to 3.11.3 does."""

    def reducer_override(self, obj: Any) -> Any:
        return (getattr, (type(obj), obj.name)) if isinstance(obj, enum.Enum) else NotImplemented


def test_enumerations_may_be_written_by_name(folder: Path) -> None:
    before = {key: node.reads() for key, node in lazysd.open(folder).items()}
    meta, made = pickle.loads((folder / ".metadata").read_bytes()), io.BytesIO()
    ByName(made).dump(meta)
    assert b"getattr" in made.getvalue()
    (folder / ".metadata").write_bytes(made.getvalue())
    assert {key: node.reads() for key, node in lazysd.open(folder).items()} == before


@pytest.mark.parametrize("then", [b".", b"\x8c\x04echo\x85R."])
def test_getattr_looks_nothing_up(folder: Path, then: bytes) -> None:
    """Neither what it gives nor a call of that is anything but a record."""
    names = b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x05torch\x8c\x04Size\x93"
    (folder / ".metadata").write_bytes(names + b"\x8c\x09__class__\x86R" + then)
    with pytest.raises((FormatError, UnsupportedCheckpointError), match=r"dcp\.save"):
        lazysd.open(folder)


def test_a_pickle_that_asks_for_all_memory_is_refused(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")  # the C unpickler would allocate 32 GB
    code = f"""if True:
        import resource, lazysd
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        try:
            lazysd.open({str(folder)!r})
        except lazysd.errors.FormatError as error:
            print(error)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "not what dcp.save of torch 2 writes" in done.stdout, done.stderr


def many_chunks(num_tensors: int, num_chunks: int, dims: tuple[int, ...], protocol: int) -> bytes:
    """The metadata of a large save, by torch's own classes."""
    described, places = {}, {}
    for number in range(num_tensors):
        key, size = (
            f"model.layers.{number}.mlp.experts.gate_and_up_projs",
            torch.Size((num_chunks * dims[0], *dims[1:])),
        )
        chunks = [
            ChunkStorageMetadata(torch.Size((at * dims[0], *(0,) * (len(dims) - 1))), torch.Size(dims))
            for at in range(num_chunks)
        ]
        described[key] = TensorStorageMetadata(TensorProperties(dtype=torch.bfloat16), size, chunks)
        for at, chunk in enumerate(chunks):
            places[MetadataIndex(key, chunk.offsets, at)] = _StorageInfo(f"__{at}_0.distcp", 1000 * number, 1000)
    planner = {key: tuple(key.split(".")) for key in described}
    whole = Metadata(described, planner_data=planner, storage_data=places, storage_meta=StorageMeta())
    return pickle.dumps(whole, protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("shape", [(400, 1, (8, 4)), (8, 64, (4096, 2048)), (2, 300, (2048, 7, 7, 7))])
def test_metadata_take_no_more_memory_than_is_counted(shape: tuple[int, int, tuple[int, ...]], protocol: int) -> None:
    data = many_chunks(*shape, protocol)
    tracemalloc.start()
    try:
        _described("here", unpickle(data, "here", _NAMES, AGAIN))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 0.9 * TIMES * len(data)  # what it would be refused for is well away


def test_metadata_that_fit_no_budget_are_refused_before_they_are_read(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"\0" * 10_000_000)
    with pytest.raises(MemoryBudgetError, match=r"\.metadata; the smallest that would do is 145MB"):
        lazysd.open(folder, max_memory="128MB")
    for command in (("convert", folder, folder.parent / "out"), ("stats", folder), ("diff", folder, folder)):
        done = cli(*command)
        assert (done.returncode, done.stderr.count("the smallest that would do is 145MB")) == (2, 1), done.stderr


def test_a_save_counts_what_opening_took(folder: Path) -> None:
    ckpt = lazysd.open(folder)
    assert ckpt.facts.opening_nbytes > 4_000_000
    assert ckpt.select("*").facts.opening_nbytes == ckpt.facts.opening_nbytes
    plain = lazysd.Checkpoint(dict(ckpt)).plan().smallest_nbytes
    assert plain + 3_000_000 < ckpt.plan().smallest_nbytes < plain + ckpt.facts.opening_nbytes


def test_a_hostile_chunk_is_refused_and_does_not_run(folder: Path, tmp_path: Path) -> None:
    sentinel, archive = tmp_path / "ran", io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Evil(sentinel)))
    (folder / "__0_0.distcp").write_bytes(archive.getvalue())

    def all_there(meta: Any) -> None:
        for index, info in meta.storage_data.items():
            meta.storage_data[index] = type(info)("__0_0.distcp", 0, len(archive.getvalue()))

    rewritten(folder, all_there)
    with pytest.raises(UnsupportedCheckpointError, match=r"asks for '(posix|os)\.system'"):
        lazysd.open(folder)
    assert not sentinel.exists()


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../out", "a\\b", "x\0y", ""])
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    def away(meta: Any) -> None:
        for info in meta.storage_data.values():
            info.relative_path = name

    rewritten(folder, away)
    with pytest.raises((UnsafePathError, FormatError), match=r"plain name|regular file"):
        lazysd.open(folder)


def test_a_link_that_leaves_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "__0_0.distcp").rename(tmp_path / "elsewhere")
    (folder / "__0_0.distcp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError, match="outside the folder"):
        lazysd.open(folder)
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(MissingShardError, match=r"__0_0\.distcp' is missing"):
        lazysd.open(folder)


def test_truncated_files_are_refused(folder: Path) -> None:
    path = folder / "__0_0.distcp"
    whole = path.read_bytes()
    for left in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:left])
        with pytest.raises(FormatError, match="the file ends at"):
            lazysd.open(folder)
    path.write_bytes(whole)
    meta = (folder / ".metadata").read_bytes()
    for left in (0, 1, len(meta) // 2, len(meta) - 1):
        (folder / ".metadata").write_bytes(meta[:left])
        with pytest.raises(FormatError, match=r"\.metadata: cannot be read"):
            lazysd.open(folder)


def _no_chunks(meta: Any) -> None:
    next(iter(meta.state_dict_metadata.values())).chunks.clear()


def _other_size(meta: Any) -> None:
    entry = next(iter(meta.state_dict_metadata.values()))
    entry.size = torch.Size([entry.size[0] + 1, *entry.size[1:]])


def _other_dtype(meta: Any) -> None:
    next(iter(meta.state_dict_metadata.values())).properties.dtype = torch.float16


def _no_place(meta: Any) -> None:
    meta.storage_data.pop(next(iter(meta.storage_data)))


def _negative(meta: Any) -> None:
    next(iter(meta.storage_data.values())).offset = -8


def _packed(meta: Any) -> None:
    next(iter(meta.storage_data.values())).transform_descriptors = ("zstd",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_chunks, "its 0 parts do not make up"),
        (_other_size, "its 1 parts do not make up"),
        (_other_dtype, r"expected F16 .* found BF16"),
        (_no_place, "has no data at"),
        (_negative, "expected sizes"),
        (_packed, r"is compressed.*save it plain"),
        (lambda meta: 3, "not what dcp.save"),
        (lambda meta: [], "not what dcp.save"),
        (lambda meta: setattr(meta, "storage_data", None), "not what dcp.save"),
        (
            lambda meta: setattr(meta, "state_dict_metadata", {3: meta.state_dict_metadata.popitem()[1]}),
            "names of tens",
        ),
    ],
)
def test_metadata_that_does_not_fit_is_refused(folder: Path, change: Callable[[Any], Any], message: str) -> None:
    rewritten(folder, change)
    with pytest.raises((FormatError, UnsupportedCheckpointError), match=message):
        lazysd.open(folder)


def test_a_dtype_safetensors_cannot_hold_is_named(tmp_path: Path) -> None:
    save({"wave": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "dcp")
    with pytest.raises(UnsupportedCheckpointError, match=r"'wave' is of dtype complex128"):
        lazysd.open(tmp_path / "dcp")


def test_a_tensor_that_is_not_dense_is_refused(tmp_path: Path) -> None:
    """dcp.save stores the whole storage of such a view; reading it densely would give other values."""
    folder = save({"x": torch.arange(12.0).reshape(3, 4)}, tmp_path / "dcp")
    archive = io.BytesIO()
    torch.save(torch.arange(24.0).reshape(3, 8)[:, ::2], archive)
    (folder / "__0_0.distcp").write_bytes(archive.getvalue())

    def longer(meta: Any) -> None:
        for index in meta.storage_data:
            meta.storage_data[index].length = len(archive.getvalue())

    rewritten(folder, longer)
    with pytest.raises(UnsupportedCheckpointError, match="not stored whole and dense"):
        lazysd.open(folder)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_damage_anywhere_is_an_error_of_ours_or_harmless(folder: Path, name: str) -> None:
    """Whatever bytes are flipped: a LazysdError, or a checkpoint that can be read to its end."""
    path = folder / name
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 3))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            for node in lazysd.open(folder, io="pread").values():
                node.materialize()
        except LazysdError:
            continue


def test_a_file_that_changes_after_opening_is_noticed(folder: Path) -> None:
    ckpt = lazysd.open(folder, io="pread")
    path = folder / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LazysdError, match="was modified since the checkpoint was opened"):
        next(iter(ckpt.values())).materialize()


def test_parts_that_lie_across_each_other_take_no_more_cuts_than_allowed() -> None:
    """Slabs along one axis beside slabs along another: cutting each where the others end makes their product."""
    n = 200
    chunks = [Chunk(None, 0, (0, at, 0), (1, 1, n)) for at in range(n)]  # type: ignore[arg-type]
    chunks += [Chunk(None, 0, (1, 0, at), (1, n, 1)) for at in range(n)]  # type: ignore[arg-type]
    tensor = StoredTensor("U8", (2, n, n), tuple(chunks))
    assert assemble(LazyTensor, "x", tensor).dims == (2, n, n)  # the axis that sets them apart comes first
    turned = [Chunk(None, 0, (c.starts[1], c.starts[2], c.starts[0]), (c.sizes[1], c.sizes[2], 1)) for c in chunks]  # type: ignore[arg-type]
    with pytest.raises(UnsupportedCheckpointError, match="lie across each other, which takes too many cuts"):
        assemble(LazyTensor, "x", StoredTensor("U8", (n, n, 2), tuple(turned)))

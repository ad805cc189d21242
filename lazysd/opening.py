"""open(): a path becomes a Checkpoint. Headers, indexes and JSON are read, tensor data is not."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint
from .errors import FormatError
from .formats.dcp.reading import METADATA, StoredTensor, read_dcp
from .formats.safetensors.header import read_header
from .formats.safetensors.index import check_weight_map, find_shards, read_json
from .graph.boxes import Box, covers_once
from .graph.building import many_nodes
from .graph.leaves import FileRange, Full
from .graph.ops import Permute
from .graph.rewrite import build, concat, slice_
from .layouts import AdapterConfig
from .stores.local import SourceFile
from .stores.strict_json import listing
from .tensor.lazy import LazyTensor

logger = logging.getLogger(__name__)


@many_nodes()
def open(path: str | os.PathLike[str], io: str = "mmap") -> Checkpoint:
    """Open a checkpoint: reads headers, indexes and config.json, and no tensor data.

    Args:
        path: a .safetensors file, a folder, a .safetensors.index.json file, an adapter folder, a folder written by
            torch.distributed.checkpoint.save (objects in it that are no tensors are left out, which a log line says),
            or a model in the hub cache ("org/name").
        io: "mmap" returns plain tensors as zero-copy views; "pread" always copies. The bytes are the same.

    Raises:
        FormatError, UnsupportedCheckpointError, UnsafePathError, MissingShardError: see lazysd.errors.
    """
    if io not in ("mmap", "pread"):
        raise ValueError(f'io is "mmap" or "pread", not {io!r}')
    if (folder := _dcp_folder(path)) is not None:
        return _open_dcp(folder, io)
    shards = find_shards(path)
    tensors: dict[str, LazyTensor] = {}
    origins: dict[str, str] = {}
    metadata: dict[str, str] = {}
    files, keys_by_file = [], {}
    for name, real in shards.files.items():
        file = SourceFile(str(real), io=io)
        header = read_header(real)
        file.check_unchanged()
        files.append(file)
        keys_by_file[name] = header.entries
        metadata |= header.metadata
        for key, entry in header.entries.items():
            if key in tensors:
                raise FormatError(f"{key} stands in two shards of {shards.root}: {origins[key]} and {name}; remove one")
            tensors[key] = LazyTensor(FileRange(file, entry.start), (), entry.shape, entry.code)
            origins[key] = name
    if shards.weight_map is not None:
        check_weight_map(shards.weight_map, keys_by_file, str(shards.root / "model.safetensors.index.json"))
    given = Path(os.fsdecode(path))
    is_folder = not (given.is_file() and given.suffix == ".safetensors")
    adapter = _adapter(shards.root) if is_folder or given.name == "adapter_model.safetensors" else None
    return Checkpoint(
        tensors,
        path=shards.root if is_folder else given,
        files=files,
        config=_config(shards.root),
        metadata=metadata,
        side_files=_side_files(shards.root) if is_folder else (),
        adapter=adapter,
    )


def _config(root: Path) -> dict[str, Any] | None:
    path = root / "config.json"
    return read_json(path, "config.json") if path.is_file() else None


def _dcp_folder(path: str | os.PathLike[str]) -> Path | None:
    """The folder, or the folder of the `.metadata` file, that dcp.save wrote; None where safetensors are there."""
    given = Path(os.path.expanduser(os.fsdecode(path) or os.devnull))  # "" is refused with the other paths
    folder = given.parent if given.name == METADATA else given
    if not folder.is_dir() or not (folder / METADATA).is_file():
        return None
    return None if folder is given and any(folder.glob("[!.]*.safetensors")) else folder


def _open_dcp(folder: Path, io: str) -> Checkpoint:
    """A folder of torch.distributed.checkpoint. Its pickles are read by name only: no code of theirs runs."""
    stored, objects = read_dcp(folder, io)
    if objects:
        logger.warning(
            "%s: %d entries are pickled objects, no tensors, and are left out: %s",
            folder,
            len(objects),
            listing(objects),
        )
    return Checkpoint(
        {key: _assembled(key, tensor) for key, tensor in stored.items()},
        path=folder,
        files=dict.fromkeys(chunk.file for tensor in stored.values() for chunk in tensor.chunks),
        config=_config(folder),
        side_files=_side_files(folder),
    )


def _assembled(key: str, tensor: StoredTensor) -> LazyTensor:
    """The tensor that the chunks make up. Raises FormatError where they leave holes or overlap."""
    parts: list[tuple[Box, LazyTensor]] = []
    for chunk in tensor.chunks:
        box = tuple(range(start, start + size) for start, size in zip(chunk.starts, chunk.sizes, strict=True))
        dims = tuple(chunk.sizes[axis] for axis in chunk.order)
        node = LazyTensor(FileRange(chunk.file, chunk.offset), (), dims, tensor.code)
        parts.append((box, build(Permute(tuple(map(chunk.order.index, range(len(dims))))), (node,))))
    if any(len(box) != len(tensor.dims) for box, _ in parts) or not covers_once([box for box, _ in parts], tensor.dims):
        raise FormatError(
            f"{listing([key])}: its {len(parts)} parts do not make up {list(tensor.dims)}; was the save interrupted?"
        )
    return _joined(parts, 0) if parts else LazyTensor(Full(0.0), (), tensor.dims, tensor.code)


def _joined(parts: Sequence[tuple[Box, LazyTensor]], axis: int) -> LazyTensor:
    """Parts that tile a box, put together axis by axis; one that several rows of others meet is cut where they meet."""
    if len(parts) == 1:
        return parts[0][1]
    bounds = sorted({bound for box, _ in parts for bound in (box[axis].start, box[axis].stop)})
    rows: dict[tuple[int, int], list[tuple[Box, LazyTensor]]] = {cut: [] for cut in pairwise(bounds)}
    place = {bound: number for number, bound in enumerate(bounds)}
    for box, node in parts:
        here = box[axis]
        for low, high in pairwise(bounds[place[here.start] : place[here.stop] + 1]):
            inside = tuple(range(len(other)) for other in box)
            cut = (*inside[:axis], range(low - here.start, high - here.start), *inside[axis + 1 :])
            rows[low, high].append(((*box[:axis], range(low, high), *box[axis + 1 :]), slice_(node, cut)))
    return concat(tuple(_joined(row, axis + 1) for row in rows.values()), axis)


def _adapter(root: Path) -> AdapterConfig | None:
    """What the JSON files of an adapter say, adapter_config.json and NeMo's, where there is one."""
    said, stamp = root / "adapter_config.json", root / "automodel_peft_config.json"
    if not said.is_file() and not stamp.is_file():
        return None
    stamped = read_json(stamp, stamp.name) if stamp.is_file() else None
    return AdapterConfig(read_json(said, said.name) if said.is_file() else {}, stamped, said.is_file())


_WEIGHTS = (
    *(".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"),
    *(".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".pkl", ".distcp"),
)


def _side_files(root: Path) -> list[Path]:
    """Files that belong to the checkpoint beside its weights: config, tokenizer, licence."""
    return [
        path
        for path in sorted(root.iterdir())
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_WEIGHTS)
        and path.name != "lazysd.manifest.json"
    ]  # fmt: skip

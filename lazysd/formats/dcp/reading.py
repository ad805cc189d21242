"""Folders written by torch.distributed.checkpoint: where every chunk of every tensor lies, as byte ranges.

`.metadata` is a pickle and every chunk is a torch.save archive. Both are read by unpicklers that build plain records
from a fixed list of names and refuse any other, so that opening a folder never runs code that it brings along.

Source: torch 2.13, distributed/checkpoint/metadata.py, filesystem.py.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ... import dtypes
from ...errors import FormatError, UnsupportedCheckpointError
from ...stores.local import SourceFile
from ...stores.strict_json import open_regular, read_at, show
from ..safetensors.index import contained
from ..torch_archive import AGAIN, Window, archive_data, sizes_of, unpickle

METADATA = ".metadata"
MAX_METADATA_NBYTES = 1 << 30


class Chunk(NamedTuple):
    """Part of a tensor, dense in a file."""

    file: SourceFile
    offset: int  # of its first byte
    starts: tuple[int, ...]  # where the part lies in the tensor
    sizes: tuple[int, ...]
    order: tuple[int, ...]  # the part's axes from the outermost to the innermost in the file


class StoredTensor(NamedTuple):
    """A tensor of a DCP folder."""

    code: str
    dims: tuple[int, ...]
    chunks: list[Chunk]  # those that hold elements, in no particular order; nobody has checked that they fit together


class _Wanted(NamedTuple):
    """A chunk that the metadata names; its file has not been looked at."""

    key: str
    code: str
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    offset: int  # of its archive
    nbytes: int


class _Record:
    """An object of a pickle, as its class name and its state; its class is never imported."""

    name = ""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


_TORCH = "torch.distributed.checkpoint."
_RECORDS = {
    (_TORCH + "metadata", name)
    for name in (
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
        *("MetadataIndex", "_MEM_FORMAT_ENCODING", "StorageMeta"),
    )
} | {(_TORCH + "filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout")}
_RECORDS |= {(module, name) for module in ("pathlib", "pathlib._local") for name in ("Path", "PosixPath")}


def read_dcp(folder: Path, mode: str) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors of a DCP folder, and the keys that hold pickled objects, which are never read.

    Reads `.metadata` and, of every chunk, its archive's directory and tensor record; no tensor data. `mode` is the `io`
    of the files.
    """
    path = folder / METADATA
    fd = open_regular(path)
    try:
        nbytes = os.fstat(fd).st_size
        if nbytes > MAX_METADATA_NBYTES:
            raise FormatError(f"{path} has {nbytes} bytes, expected at most {MAX_METADATA_NBYTES}; {AGAIN}")
        raw = read_at(fd, nbytes, 0, path)
    finally:
        os.close(fd)
    names: dict[tuple[str, str], Any] = {key: type(key[1], (_Record,), {"name": key[1]}) for key in _RECORDS}
    names |= {("torch", "Size"): tuple, ("collections", "OrderedDict"): OrderedDict}
    meta = unpickle(raw, str(path), names)
    try:
        tensors, objects, wanted = _described(folder, meta)
        for name in sorted(wanted):
            _locate(folder, name, mode, wanted[name], tensors)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, struct.error) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{folder}: not what dcp.save of torch 2 writes ({show(repr(error))}); {AGAIN}") from error
    return tensors, objects


def _described(folder: Path, meta: Any) -> tuple[dict[str, StoredTensor], list[str], dict[str, list[_Wanted]]]:
    """What the metadata says: tensors still without chunks, keys of objects, the chunks by file name."""
    places: dict[tuple[str, tuple[int, ...]], Any] = {}
    for index, info in meta.state["storage_data"].items():
        places[index.state["fqn"], tuple(index.state.get("offset") or ())] = info.state
    tensors: dict[str, StoredTensor] = {}
    objects: list[str] = []
    wanted: dict[str, list[_Wanted]] = {}
    for key, entry in meta.state["state_dict_metadata"].items():
        if not isinstance(key, str):
            raise FormatError(f"{folder / METADATA}: expected names of tensors, found {show(key)}; {AGAIN}")
        if entry.name != "TensorStorageMetadata":
            objects.append(key)
            continue
        properties, dims = entry.state["properties"].state, sizes_of(entry.state["size"])
        dtype = (properties[0] if isinstance(properties, tuple) else properties["dtype"]).name
        code = next((item.code for item in dtypes.DTYPES.values() if item.torch_name == dtype), None)
        if code is None:
            raise UnsupportedCheckpointError(
                f"{folder}: {show(key)} is of dtype {dtype}, which safetensors cannot hold"
            )
        tensors[key] = StoredTensor(code, dims, [])
        for chunk in entry.state["chunks"]:
            starts, sizes = sizes_of(chunk.state["offsets"]), sizes_of(chunk.state["sizes"])
            if (key, starts) not in places:
                raise FormatError(f"{folder / METADATA}: {show(key)} has no data at {list(starts)}; {AGAIN}")
            info = places[key, starts]
            if info.get("transform_descriptors"):
                how = show(str(info["transform_descriptors"]))
                raise UnsupportedCheckpointError(f"{folder}: {show(key)} is compressed ({how}); save it plain")
            if prod(sizes):
                at, nbytes = sizes_of((info["offset"], info["length"]))
                wanted.setdefault(info["relative_path"], []).append(_Wanted(key, code, starts, sizes, at, nbytes))
    return tensors, objects, wanted


def _locate(folder: Path, name: str, mode: str, wanted: list[_Wanted], tensors: dict[str, StoredTensor]) -> None:
    """Find the data of a file's chunks and add them to their tensors."""
    if not isinstance(name, str):
        raise ValueError(f"expected a file name, found {show(name)}")
    path = contained(folder, name)
    source = SourceFile(str(path), io=mode)
    with open(path, "rb") as file:
        for item in sorted(wanted, key=lambda item: item.offset):
            where = f"{path} at {item.offset} ({show(item.key)})"
            if item.offset + item.nbytes > source.identity.size:
                raise FormatError(
                    f"{where}: expected {item.nbytes} bytes, the file ends at {source.identity.size}; fetch it again"
                )
            inside, order = archive_data(Window(file, item.offset, item.nbytes), where, item.code, item.sizes)
            chunk = Chunk(source, item.offset + inside, item.starts, item.sizes, order)
            tensors[item.key].chunks.append(chunk)
    source.check_unchanged()

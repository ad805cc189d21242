"""Folders written by torch.distributed.checkpoint: where every chunk of every tensor lies, as byte ranges.

`.metadata` is a pickle and every chunk is a torch.save archive. Both are read by unpicklers that build plain records
from a fixed list of names and refuse any other, so that opening a folder never runs code that it brings along.

Source: torch 2.13, distributed/checkpoint/metadata.py, filesystem.py.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from math import prod
from typing import Any, NamedTuple

from ... import dtypes
from ...errors import FormatError, UnsupportedCheckpointError
from ...stores.base import File
from ...stores.strict_json import show
from ..base import Chunk, Contents, Folder, StoredTensor, sentence
from ..pickles import most_nbytes, record, sizes_of, unpickle
from ..torch_archive import Archive, Stored, span, stored_tensor

METADATA = ".metadata"
MAX_METADATA_NBYTES = 1 << 30
BASE_NBYTES = 4 << 20  # of memory to open a folder, besides what its metadata take
AGAIN = "the checkpoint is damaged or not from dcp.save; save it again"


_PATHLIB = ("pathlib", "pathlib._local")


class _Wanted(NamedTuple):
    """A chunk that the metadata names; its file has not been looked at."""

    key: str
    code: str
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    offset: int  # of its archive
    nbytes: int


_TORCH = "torch.distributed.checkpoint."
_RECORDS = {
    (_TORCH + module, name): record(name, *fields)
    for module, name, *fields in (
        ("metadata", "Metadata", "state_dict_metadata", "storage_data"),
        ("metadata", "TensorStorageMetadata", "properties", "size", "chunks"),
        ("metadata", "ChunkStorageMetadata", "offsets", "sizes"),
        ("metadata", "TensorProperties", "dtype"),
        ("metadata", "MetadataIndex", "fqn", "offset"),
        ("metadata", "BytesStorageMetadata"),
        ("metadata", "_MEM_FORMAT_ENCODING"),
        ("metadata", "StorageMeta"),
        ("filesystem", "_StorageInfo", "relative_path", "offset", "length", "transform_descriptors"),
    )
} | {
    (module, name): record(name)
    for module, *names in (("torch.serialization", "_get_layout"), *((m, "Path", "PosixPath") for m in _PATHLIB))
    for name in names
}
_NAMES = _RECORDS | {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
    # Python 3.11.0 to 3.11.3 writes a member of an enumeration so; a record is made of it, and no attribute looked up.
    ("builtins", "getattr"): record("getattr"),
    ("__builtin__", "getattr"): record("getattr"),  # protocols below 3
}


class Dcp:
    """Opens a folder that dcp.save wrote, by its path or by that of its `.metadata`."""

    name = "dcp"
    rank = 20

    def recognises(self, folder: Folder) -> bool:
        return folder.named == METADATA or (folder.named is None and folder.store.has(METADATA))

    def lacks(self, folder: Folder) -> None:
        """Reading raises MissingShardError at the first file that is not there."""
        self.read(folder)

    def read(self, folder: Folder) -> Contents:
        """Reads `.metadata` and, of every chunk, its archive's directory and tensor record; no tensor data."""
        file = folder.store.open(METADATA)
        if file.size > MAX_METADATA_NBYTES:
            raise FormatError(f"{file.path} has {file.size} bytes, expected at most {MAX_METADATA_NBYTES}; {AGAIN}")
        where, opening_nbytes = folder.store.path, BASE_NBYTES + most_nbytes(file.size)
        folder.check_room(opening_nbytes, file.path)
        try:
            described = _described(file.path, unpickle(file.text(0, file.size), file.path, _NAMES, AGAIN))
            chunks: dict[str, list[Chunk]] = {key: [] for key in described.tensors}
            files = [_locate(folder, name, described.wanted[name], chunks) for name in sorted(described.wanted)]
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, struct.error) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{where}: not what dcp.save of torch 2 writes ({show(repr(error))}); {AGAIN}") from error
        tensors = {key: StoredTensor(*said, tuple(chunks[key])) for key, said in described.tensors.items()}
        remarks = []
        if described.objects:
            what = sentence(len(described.objects), "pickled object", described.objects)
            remarks.append(f"{where}: what is no tensor is left out, {what}")
        return Contents(
            tensors,
            tuple(files),
            {},
            frozenset((METADATA, *(file.name for file in files))),
            tuple(remarks),
            opening_nbytes=opening_nbytes,
        )


class _Described(NamedTuple):
    """What the metadata says."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]  # key -> (code, dims)
    objects: list[str]  # keys of what is no tensor
    wanted: dict[str, list[_Wanted]]  # file name -> the chunks in it


def _described(where: str, meta: Any) -> _Described:
    """The metadata in few objects; what has been understood of `meta` is let go, for that is most of it."""
    entries, storage = meta.state
    if not isinstance(entries, dict) or not isinstance(storage, dict):
        raise ValueError(f"expected tensors and their places, found {show(entries)} and {show(storage)}")
    places: dict[tuple[str, tuple[int, ...]], Any] = {}
    while storage:
        index, info = storage.popitem()
        places[index.state[0], tuple(index.state[1] or ())] = info.state
    described = _Described({}, [], {})
    for key in list(entries):
        entry = entries.pop(key)
        if not isinstance(key, str):
            raise FormatError(f"{where}: expected names of tensors, found {show(key)}; {AGAIN}")
        if entry.name != "TensorStorageMetadata":
            described.objects.append(key)
            continue
        properties, size, chunks = entry.state
        dtype, dims = properties.state[0].name, sizes_of(size)
        code = next((item.code for item in dtypes.DTYPES.values() if item.torch_name == dtype), None)
        if code is None:
            raise UnsupportedCheckpointError(f"{where}: {show(key)} is of dtype {dtype}, which safetensors cannot hold")
        described.tensors[key] = code, dims
        for chunk in chunks:
            starts, sizes = map(sizes_of, chunk.state)
            if (key, starts) not in places:
                raise FormatError(f"{where}: {show(key)} has no data at {show(list(starts))}; {AGAIN}")
            name, *extent, transforms = places.pop((key, starts))
            if transforms:
                raise UnsupportedCheckpointError(
                    f"{where}: {show(key)} is compressed ({show(transforms)}); save it plain"
                )
            if prod(sizes):
                at, nbytes = sizes_of(extent)
                if not isinstance(name, str):
                    raise ValueError(f"expected a file name, found {show(name)}")
                described.wanted.setdefault(name, []).append(_Wanted(key, code, starts, sizes, at, nbytes))
    return described


def _locate(folder: Folder, name: str, wanted: list[_Wanted], chunks: dict[str, list[Chunk]]) -> File:
    """Find the data of a file's chunks."""
    file = folder.store.open(name)
    for item in sorted(wanted, key=lambda item: item.offset):
        where = f"{file.path} at {item.offset} ({show(item.key)})"
        if item.offset + item.nbytes > file.size:
            raise FormatError(f"{where}: expected {item.nbytes} bytes, the file ends at {file.size}; fetch it again")
        archive = Archive(file, item.offset, item.nbytes, where, AGAIN)
        tensor = _only_tensor(archive, where)
        if tensor.dims != item.sizes or tensor.code != item.code:
            raise FormatError(
                f"{where}: expected {item.code} {list(item.sizes)}, found {tensor.code} {show(list(tensor.dims))}; "
                f"{AGAIN}"
            )
        itemsize = dtypes.itemsize(item.code)
        start, nbytes = archive.storages([tensor])[tensor.storage]
        extent = span(tensor.dims, tensor.strides)
        if extent != prod(tensor.dims) or (tensor.first + extent) * itemsize > nbytes:
            raise UnsupportedCheckpointError(f"{where}: the tensor is not stored whole and dense; save it again")
        offset = start + tensor.first * itemsize
        chunks[item.key].append(Chunk(file, offset, item.starts, item.sizes, tensor.strides))
    return file


def _only_tensor(archive: Archive, where: str) -> Stored:
    value = archive.pickle()
    try:
        tensor = stored_tensor(value)
    except UnsupportedCheckpointError as error:
        raise UnsupportedCheckpointError(f"{where}: {error}") from None
    if tensor is None:
        raise FormatError(f"{where}: holds no plain tensor; {AGAIN}")
    return tensor


CONTAINER = Dcp()

"""Files of torch.save: `pytorch_model.bin` with or without an index, `.pt`, `.pth`, `consolidated.*.pth`.

The pickle is read by name (see `pickles`), so no code of the file runs; storages are byte ranges, read when asked for.
Views stay views: tensors that share a storage share its bytes.

Source: torch 2.13, serialization.py; the index of transformers (`pytorch_model.bin.index.json`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

from .. import dtypes
from ..errors import FormatError, UnsupportedCheckpointError
from ..facts import Absent
from ..stores.base import File
from ..stores.strict_json import listing, read_json, show
from .base import Chunk, Contents, Folder, StoredTensor, sentence
from .pickles import Record
from .shards import check_numbered, lacking
from .torch_archive import Archive, Stored, span, stored_tensor

AGAIN = "the file is damaged or not from torch.save; save it again"
MAX_LEVELS = 32  # of dicts and lists in each other
_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_INDEX = re.compile(r".+\.(?:bin|pt|pth)\.index(?:\.[^./]+)?\.json")
_USUAL = ("pytorch_model.bin", "adapter_model.bin", "diffusion_pytorch_model.bin", "consolidated.00.pth")
_NUMBERED = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})\.(?:bin|pt|pth)")
_RANKS = re.compile(r"consolidated\.(\d+)\.pth")
_NOT_WEIGHTS = re.compile(
    r"(?:training_args\.bin|(?:optimizer|scheduler|scaler|random_states|rng_state)\w*\.(?:bin|pt|pth))"
)


class TorchZip:
    """Opens the zip archives that torch.save has written since torch 1.6."""

    name = "torch"
    rank = 30

    def recognises(self, folder: Folder) -> bool:
        if folder.named is not None:
            return folder.named.endswith(_SUFFIXES) or bool(_INDEX.fullmatch(folder.named))
        return bool(_weights(folder)) or any(_INDEX.fullmatch(name) for name in folder.names)

    def lacks(self, folder: Folder) -> Absent | None:
        return _files(folder).absent

    def read(self, folder: Folder) -> Contents:
        names, weight_map, index, absent = _files(folder)
        tensors: dict[str, StoredTensor] = {}
        homes: dict[str, str] = {}
        files: list[File] = []
        remarks: list[str] = []
        for name in names:
            file = folder.store.open(name)
            found, others = read_archive(file)
            files.append(file)
            if others:
                remarks.append(f"{file.path}: what is no tensor is left out, {sentence(len(others), 'value', others)}")
            for key, tensor in found.items():
                if weight_map is not None and weight_map.get(key, name) != name:
                    remarks.append(
                        f"{show(key)} of {show(name)} is not read: the index names {show(weight_map[key])} for it"
                    )
                    continue
                if key in homes:
                    raise FormatError(f"{show(key)} stands in two files of {folder.path}: {homes[key]} and {name}")
                tensors[key], homes[key] = tensor, name
        if weight_map is not None:
            there = {*tensors, *(absent.homes or () if absent else ())}
            _check_index(weight_map, there, f"{folder.store.path}/{index}")
        used = {*names, *([index] if index else [])}
        return Contents(tensors, tuple(files), {}, frozenset(used), tuple(remarks), absent=absent)


def read_archive(file: File) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors of a torch.save archive, and the names of what else it holds; nested names are joined by dots.

    Reads the archive's directory and pickle; no tensor data.

    Raises:
        UnsupportedCheckpointError: it needs more than tensors and plain values, and no code of it runs; or it is of
            torch before 1.6, TorchScript, or packed.
        FormatError: it is damaged.
    """
    _refuse_others(file)
    archive = Archive(file, 0, file.size, file.path, AGAIN)
    if archive.has("constants.pkl"):
        raise UnsupportedCheckpointError(f"cannot open {file.path}: it is a TorchScript program; save its state_dict()")
    stored: dict[str, Stored] = {}
    others: list[str] = []
    try:
        for key, value in _flat(archive.pickle(), file.path):
            try:
                tensor = stored_tensor(value)
            except UnsupportedCheckpointError as error:
                raise UnsupportedCheckpointError(f"cannot open {file.path}: {show(key)}: {error}") from None
            if tensor is None:
                others.append(key)
            elif key in stored:
                raise FormatError(f"{file.path}: two of its tensors are called {show(key)} when names are joined")
            else:
                stored[key] = tensor
    except (TypeError, AttributeError, IndexError, KeyError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{file.path}: not what torch.save writes ({show(repr(error))}); {AGAIN}") from error
    if not stored:
        raise UnsupportedCheckpointError(f"cannot open {file.path}: it holds no tensor, only {listing(others)}")
    places = archive.storages(tensor for tensor in stored.values() if prod(tensor.dims))
    tensors = {key: _placed(file, key, tensor, places) for key, tensor in stored.items()}
    return tensors, others


def _placed(file: File, key: str, tensor: Stored, places: Mapping[str, tuple[int, int]]) -> StoredTensor:
    if not prod(tensor.dims):
        return StoredTensor(tensor.code, tensor.dims, ())
    start, nbytes = places[tensor.storage]
    itemsize = dtypes.itemsize(tensor.code)
    if (tensor.first + span(tensor.dims, tensor.strides)) * itemsize > nbytes:
        raise FormatError(f"{file.path}: {show(key)} reaches beyond the end of its storage; {AGAIN}")
    origin = (0,) * len(tensor.dims)
    chunk = Chunk(file, start + tensor.first * itemsize, origin, tensor.dims, tensor.strides)
    return StoredTensor(tensor.code, tensor.dims, (chunk,))


def _flat(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in dicts and lists, names joined by dots. A container is entered once only."""
    todo: list[tuple[str, Any, int]] = [("", value, 0)]
    seen: set[int] = set()
    while todo:
        name, item, level = todo.pop()
        if isinstance(item, Record) or not isinstance(item, (dict, list)) or not item:
            yield name or "the whole", item
            continue
        if id(item) in seen or level == MAX_LEVELS:
            raise UnsupportedCheckpointError(f"{where}: {show(name)} is nested in itself, held twice, or too deep")
        seen.add(id(item))
        pairs = item.items() if isinstance(item, dict) else enumerate(item)
        inside = []
        for key, part in pairs:
            if not isinstance(key, (str, int)):
                raise UnsupportedCheckpointError(f"{where}: expected names of tensors, found {show(key)}")
            inside.append((f"{name}.{key}" if name else str(key), part, level + 1))
        todo.extend(reversed(inside))


def _refuse_others(file: File) -> None:
    head = file.text(0, min(file.size, 4))
    if head != b"PK\x03\x04":
        kind = "a pickle of torch before 1.6, or of another program" if head[:1] == b"\x80" else "no zip archive"
        raise UnsupportedCheckpointError(
            f"cannot open {file.path}: expected a file of torch.save, found {kind}; lazysd runs no code from "
            "checkpoints, so save it again with torch.save (after torch.load(weights_only=True)), or as safetensors"
        )


def _weights(folder: Folder) -> list[str]:
    return [name for name in folder.ending(*_SUFFIXES) if not _NOT_WEIGHTS.fullmatch(name)]


class _Files(NamedTuple):
    """What the user named."""

    names: list[str]
    weight_map: dict[str, str] | None = None
    index_name: str | None = None
    absent: Absent | None = None


def _files(folder: Folder) -> _Files:
    if folder.named is not None:
        return _indexed(folder, folder.named) if _INDEX.fullmatch(folder.named) else _Files([folder.named])
    indexes = [name for name in folder.names if _INDEX.fullmatch(name)]
    if len(indexes) == 1 or "pytorch_model.bin.index.json" in indexes:
        return _indexed(folder, indexes[0] if len(indexes) == 1 else "pytorch_model.bin.index.json")
    found = _weights(folder)
    usual = [name for name in _USUAL if name in found and not _RANKS.fullmatch(name)]
    ranks = [name for name in found if _RANKS.fullmatch(name)]
    if usual:
        return _Files(usual[:1])
    if len(ranks) > 1:
        raise UnsupportedCheckpointError(
            f"cannot open {folder.path}: {sentence(len(ranks), 'file', ranks)} hold one rank's slices each, and "
            "nothing in them says along which axes; open one of them, or convert them with the program that wrote them"
        )
    return _Files(found, absent=check_numbered(folder, found, _NUMBERED))


def _indexed(folder: Folder, name: str) -> _Files:
    weight_map = read_json(folder.store.open(name), "shard index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(type(v) is str for v in weight_map.values()):
        raise FormatError(f"{folder.store.path}/{name}: expected weight_map to name files; fetch it again")
    wanted = sorted(set(weight_map.values()))
    missing = [file for file in wanted if not folder.store.has(file)]
    for file in wanted:
        if not file.endswith(_SUFFIXES):
            raise UnsupportedCheckpointError(f"{folder.store.path}/{name}: {show(file)} is no file of torch.save")
    names = sorted(set(wanted) - set(missing))
    return _Files(names, weight_map, name, lacking(folder, name, weight_map, missing))


def _check_index(weight_map: Mapping[str, str], tensors: set[str], where: str) -> None:
    for problem, keys in (
        ("are named but in no shard", [key for key in weight_map if key not in tensors]),
        ("are in a shard but not named", [key for key in tensors if key not in weight_map]),
    ):
        if keys:
            raise FormatError(
                f"the index {where} does not fit its shards: {len(keys)} tensors {problem}: {listing(keys)}; "
                "index and shards are of different saves, fetch them again together"
            )


CONTAINER = TorchZip()

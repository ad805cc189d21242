"""Which safetensors files make up a checkpoint: shard indexes, numbered sets, single files.

Source: file names as transformers, diffusers and peft write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from operator import eq
from typing import Any, NamedTuple

from ...errors import FormatError, MissingShardError, UnsupportedCheckpointError
from ...facts import Absent
from ...stores.base import File
from ...stores.strict_json import listing, read_json, show
from ..base import WEIGHTS, Folder, sentence
from ..shards import check_numbered, lacking

SAFETENSORS = ".safetensors"
INDEX = re.compile(
    r".+\.safetensors\.index(?:\.[^./]+)?\.json"
)  # a variant's name stands before .json: index.fp16.json
USUAL_INDEX = "model.safetensors.index.json"
_USUAL = ("model.safetensors", "adapter_model.safetensors")
_NUMBERED = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})\.safetensors")


class ShardSet(NamedTuple):
    """The files of a checkpoint; nothing of them has been read yet."""

    names: tuple[str, ...]
    weight_map: dict[str, str] | None = None  # tensor -> shard name; None where no index was found
    index_name: str | None = None
    index_metadata: Mapping[str, Any] = {}
    remarks: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()  # files that the remarks name
    found: Mapping[str, File] = {}  # of an index, by their names
    absent: Absent | None = None  # shards that are not there, and not among `names`


def find_shards(folder: Folder) -> ShardSet:
    """Find the safetensors files of a checkpoint; reads the index, if there is one, and no shard.

    Raises:
        UnsafePathError: a shard that is, or links to, a file outside the folder.
        FormatError: a damaged index, or several files and nothing to say how they belong together.
    """
    if folder.named is not None:
        return _from_index(folder, folder.named) if INDEX.fullmatch(folder.named) else ShardSet((folder.named,))
    indexes = [name for name in folder.names if INDEX.fullmatch(name)]
    found = folder.ending(SAFETENSORS)
    if not indexes:
        usual = [name for name in _USUAL if name in found]
        if usual:
            return ShardSet((usual[0],))
        return ShardSet(tuple(found), absent=check_numbered(folder, found, _NUMBERED))
    chosen = USUAL_INDEX if USUAL_INDEX in indexes else indexes[0]
    if len(indexes) > 1 and chosen != USUAL_INDEX:
        raise FormatError(
            f"cannot open {folder.path}: found {len(indexes)} indexes, {listing(indexes)}; open one of them"
        )
    shards = _from_index(folder, chosen)
    whole = chosen.split(".safetensors.index")[0] + SAFETENSORS
    if whole in found and whole not in shards.names:
        remark = (
            f"{folder.path} holds both {whole} and the {len(shards.names)} shards of {chosen}: the shards were read, "
            f"and {whole} was not (some programs read that one); open it by its own path if it is the one you mean"
        )
        shards = shards._replace(remarks=(remark,), named=frozenset((whole,)))
    return shards


def format_index(homes: Iterable[tuple[str, str]], total_size: int, total_parameters: int) -> Iterator[bytes]:
    """The JSON of a shard index, byte for byte as transformers writes it, in pieces.

    Args:
        homes: (tensor, shard name) of every tensor.
        total_size: bytes of all tensors, headers not counted.
        total_parameters: elements of all tensors.
    """
    sizes = (
        f'{{\n  "metadata": {{\n    "total_parameters": {total_parameters},\n    "total_size": {total_size}\n  }},\n'
    )
    yield f'{sizes}  "weight_map": {{'.encode()
    before = "\n"
    for key, name in sorted(homes):
        yield f"{before}    {json.dumps(key)}: {json.dumps(name)}".encode()
        before = ",\n"
    yield b"\n  }\n}\n" if before != "\n" else b"}\n}\n"


def check_weight_map(
    weight_map: Mapping[str, str], keys_by_file: Mapping[str, Iterable[str]], index_name: str
) -> list[str]:
    """Hold the index against its shards. It decides: of a tensor in two shards, the one that it names is read.

    Returns:
        A remark on the copies that are not read.

    Raises:
        FormatError: tensors that are named but absent, present but not named, or in another shard than named.
    """
    listed = {name: list(keys) for name, keys in keys_by_file.items()}
    if sum(map(len, listed.values())) == len(weight_map) and all(
        all(map(eq, map(weight_map.get, keys), repeat(name))) for name, keys in listed.items()
    ):  # as nearly always: as many keys as are named, each in its own shard
        return []
    homes: dict[str, str] = {}
    copies: dict[str, list[str]] = {}  # of what stands in several shards, all of them
    for name, keys in listed.items():
        for key in keys:
            if key in homes:
                copies.setdefault(key, [homes[key]]).append(name)
            homes[key] = name
    wrong = [
        key for key, name in weight_map.items() if homes.get(key, name) != name and name not in copies.get(key, ())
    ]
    for problem, keys in (
        ("are named but in no shard", [key for key in weight_map if key not in homes]),
        (f"are in another shard than named (the first one in {show(homes[wrong[0]])})" if wrong else "", wrong),
        ("are in a shard but not named", [key for key in homes if key not in weight_map]),
    ):
        if keys:
            raise FormatError(
                f"the index {index_name} does not fit its shards: {len(keys)} tensors {problem}: {listing(keys)}; "
                "index and shards are of different saves, fetch them again together"
            )
    if not copies:
        return []
    first = next(iter(copies))
    others = [name for name in copies[first] if name != weight_map[first]]
    return [
        f"{sentence(len(copies), 'tensor', copies)} in several shards; the index {index_name} decides which one is "
        f"read (of {show(first)} that in {show(weight_map[first])}, not that in {show(others[0])})"
    ]


def _from_index(folder: Folder, name: str) -> ShardSet:
    file = folder.store.open(name)
    index = read_json(file, "shard index")
    again = "correct the index or fetch it again"
    weight_map, metadata = index.get("weight_map"), index.get("metadata", {})
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(
            f"{file.path}: expected weight_map to be an object of tensors, found {show(weight_map)}; {again}"
        )
    if not isinstance(metadata, dict):
        raise FormatError(f"{file.path}: expected metadata to be an object, found {show(metadata)}; {again}")
    for key, shard in weight_map.items() if set(map(type, weight_map.values())) != {str} else ():
        if not isinstance(shard, str):
            raise FormatError(
                f"{file.path}: expected a shard name for tensor {show(key)}, found {show(shard)}; {again}"
            )
    missing: list[str] = []
    found: dict[str, File] = {}
    for shard in sorted(set(weight_map.values())):
        if shard.endswith(WEIGHTS) and not shard.endswith(SAFETENSORS):
            raise UnsupportedCheckpointError(
                f"{folder.path}: the file {show(shard)}: expected a safetensors file in a safetensors index; {again}"
            )
        try:
            found[shard] = folder.store.open(shard)
        except MissingShardError:
            missing.append(shard)
    absent = lacking(folder, name, weight_map, missing)
    return ShardSet(tuple(sorted(found)), weight_map, name, metadata, found=found, absent=absent)

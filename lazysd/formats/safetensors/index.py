"""Which files make up a checkpoint: shard indexes, folders, and the cache of the Hugging Face hub.

Source: file names as transformers and peft write them; the cache layout of huggingface_hub
(`models--org--name/{refs,snapshots,blobs}`, snapshots being links into blobs).
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import FormatError, MissingShardError, ReadError, UnsafePathError, UnsupportedCheckpointError
from ...stores.strict_json import check_regular, listing, open_regular, read_at, read_json, show

__all__ = ["ShardSet", "check_weight_map", "find_shards", "format_index", "read_json"]

_SAFETENSORS = ".safetensors"
_INDEX = ".safetensors.index.json"
_USUAL = ("model.safetensors", "adapter_model.safetensors")
_NEVER_OPENED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf")
_NUMBERED = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})\.safetensors")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*|models--[A-Za-z0-9_.-]+")
_CONVERT = "convert it to safetensors with a tool you trust first"


class ShardSet(NamedTuple):
    """The files of a checkpoint; none has been opened yet."""

    root: Path  # the checkpoint folder, where config.json lies
    files: dict[str, Path]  # shard name -> real path, links resolved
    weight_map: dict[str, str] | None  # tensor -> shard name; None where no index was found
    index_metadata: dict[str, Any]


def find_shards(path: str | os.PathLike[str]) -> ShardSet:
    """Find the safetensors files of a checkpoint; reads the index, if there is one, and no shard.

    Args:
        path: a `.safetensors` file, a `.safetensors.index.json` file, a folder that holds either, the folder of a model
            in the hub cache, or the name of a cached model ("org/name") where no such path exists.

    Raises:
        MissingShardError: nothing there, or a shard that the index names is missing.
        UnsupportedCheckpointError: only pickles or GGUF files.
        UnsafePathError: a shard that is, or links to, a file outside the folder.
        FormatError: a damaged index, or several files and nothing to say how they belong together.
    """
    if not os.fsdecode(path):
        raise MissingShardError("cannot open '': the path is empty; name a file, a folder or a cached model")
    given = Path(os.path.expanduser(os.fsdecode(path)))
    if not os.path.exists(given):
        given = _cached_model(given)
    if os.path.isdir(given):
        if given.name.startswith("models--") and os.path.isdir(given / "snapshots"):
            given = _snapshot(given)
        return _in_folder(given)
    check_regular(given, given.stat().st_mode)
    if given.name.endswith(_INDEX):
        return _from_index(given)
    if given.suffix in _NEVER_OPENED:
        raise UnsupportedCheckpointError(f"cannot open {given}: lazysd never opens {given.suffix} files; {_CONVERT}")
    if given.suffix != _SAFETENSORS:
        raise FormatError(f"cannot open {given}: expected a {_SAFETENSORS} file, its index.json, or a folder of them")
    return ShardSet(given.parent, {given.name: given.resolve()}, None, {})  # named by the user: may link anywhere


def format_index(weight_map: Mapping[str, str], total_size: int, total_parameters: int) -> bytes:
    """Write the JSON of a shard index, byte for byte as transformers writes it.

    Args:
        weight_map: tensor -> shard name.
        total_size: bytes of all tensors, headers not counted.
        total_parameters: elements of all tensors.
    """
    index = {
        "metadata": {"total_parameters": total_parameters, "total_size": total_size},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(index, indent=2) + "\n").encode()


def check_weight_map(weight_map: Mapping[str, str], keys_by_file: Mapping[str, Iterable[str]], index_name: str) -> None:
    """Raise FormatError unless the index names exactly the keys of the shards, each in the shard that holds it."""
    counts: Counter[str] = Counter()
    owners: dict[str, str] = {}
    for name, keys in keys_by_file.items():
        for key in keys:
            counts[key] += 1
            owners[key] = name
    wrong = [key for key, name in weight_map.items() if owners.get(key, name) != name]
    for problem, keys in (
        ("are in two shards", [key for key, count in counts.items() if count > 1]),
        ("are named but in no shard", [key for key in weight_map if key not in owners]),
        (f"are in another shard than named (the first one in {show(owners[wrong[0]])})" if wrong else "", wrong),
        ("are in a shard but not named", [key for key in owners if key not in weight_map]),
    ):
        if keys:
            raise FormatError(
                f"the index {index_name} does not fit its shards: {len(keys)} tensors {problem}: {listing(keys)}; "
                "index and shards are of different saves, fetch them again together"
            )


def _in_folder(folder: Path) -> ShardSet:
    names = [name for name in _listdir(folder) if not name.startswith(".")]  # "._x" is what macOS leaves beside "x"
    indexes = [name for name in names if name.endswith(_INDEX)]
    if indexes:
        name = "model" + _INDEX if "model" + _INDEX in indexes else indexes[0]
        if len(indexes) > 1 and name != "model" + _INDEX:
            raise FormatError(
                f"cannot open {folder}: found {len(indexes)} indexes, {listing(indexes)}; open one of them"
            )
        contained(folder, name)
        return _from_index(folder / name)
    found = [name for name in names if name.endswith(_SAFETENSORS)]
    if not found:
        others = [name for name in names if name.endswith(_NEVER_OPENED)]
        if others:
            reason = f"found no safetensors, only files lazysd never opens: {listing(others)}"
            raise UnsupportedCheckpointError(f"cannot open {folder}: {reason}; {_CONVERT}")
        raise MissingShardError(f"cannot open {folder}: expected {_SAFETENSORS} files, found none; check the path")
    usual = [name for name in _USUAL if name in found]
    if usual:
        found = usual[:1]
    else:
        _check_numbered(folder, found)
    return ShardSet(folder, {name: contained(folder, name) for name in found}, None, {})


def _listdir(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ReadError(f"cannot list {folder}: {error}; check the path and its permissions") from error


def _check_numbered(folder: Path, names: list[str]) -> None:
    """Without an index, files belong together only where their names say so, 1 to N. One file may have any name."""
    parts = [match.groups() if (match := _NUMBERED.fullmatch(name)) else None for name in names]
    if parts == [None]:
        return
    sets = {(part[0], int(part[2])) if part else None for part in parts}
    if len(sets) > 1 or None in sets:
        raise FormatError(
            f"cannot open {folder}: expected an index or one numbered set, found {len(names)} files without an index, "
            f"{listing(names)}; open one of them, or write the index"
        )
    total = int(parts[0][2]) if parts[0] else 0
    numbers = [int(part[1]) for part in parts if part]
    if sorted(numbers) != list(range(1, len(names) + 1)) or len(names) != total:
        absent = next((number for number in range(1, len(names) + 2) if number not in numbers), 0)
        raise FormatError(
            f"cannot open {folder}: expected {total} shards, found {len(names)} ({listing(names)}), "
            f"the first one missing is number {absent}; fetch the missing shards, or open a single file by its path"
        )


def _from_index(path: Path) -> ShardSet:
    index = read_json(path, "shard index")
    again = "correct the index or fetch it again"
    weight_map, metadata = index.get("weight_map"), index.get("metadata", {})
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path}: expected weight_map to be an object of tensors, found {show(weight_map)}; {again}")
    if not isinstance(metadata, dict):
        raise FormatError(f"{path}: expected metadata to be an object, found {show(metadata)}; {again}")
    for key, name in weight_map.items():
        if not isinstance(name, str):
            raise FormatError(f"{path}: expected a shard name for tensor {show(key)}, found {show(name)}; {again}")
    counts = Counter(weight_map.values())
    files: dict[str, Path] = {}
    missing: list[str] = []
    for name in sorted(counts):
        try:
            files[name] = contained(path.parent, name)
        except MissingShardError:
            missing.append(name)
    if missing:
        num_tensors = sum(counts[name] for name in missing)
        raise MissingShardError(
            f"{path}: {len(missing)} of {len(counts)} shards are missing, with {num_tensors} tensors: "
            f"{listing(missing)}; fetch them, or correct the index"
        )
    return ShardSet(path.parent, files, weight_map, metadata)


def contained(folder: Path, name: str) -> Path:
    """The real path of a file of `folder`. Nothing outside the folder is looked at, let alone opened."""
    where = f"{folder}: the file {show(name)}"
    if (
        name.startswith("/")
        or "\\" in name
        or "\0" in name
        or ".." in name.split("/")
        or posixpath.normpath(name) != name
    ):
        raise UnsafePathError(f"{where}: expected a plain name inside the folder; correct the index that names it")
    if name.endswith(_NEVER_OPENED):
        raise UnsupportedCheckpointError(f"{where}: lazysd never opens such files; {_CONVERT}")
    home = Path(os.path.realpath(folder))
    allowed = [home]
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        allowed.append(home.parent.parent / "blobs")
    try:
        real = Path(os.path.realpath(home / name))
        if not any(real.is_relative_to(place) for place in allowed):
            step = "open that file by its own path, or copy it into the folder"
            raise UnsafePathError(f"{where} is a link to {real}, outside the folder; {step}")
        check_regular(home / name, real.stat().st_mode)
    except FileNotFoundError:
        raise MissingShardError(f"{where} is missing; fetch it again") from None
    except OSError as error:
        kind = FormatError if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR) else ReadError
        raise kind(f"{where} cannot be reached: {error}; correct the index or the link") from error
    return real


def _cached_model(given: Path) -> Path:
    """The hub cache folder of a model named "org/name" or "models--org--name"."""
    name = str(given)
    if os.path.lexists(given) or not _REPO.fullmatch(name) or given.suffix in (_SAFETENSORS, ".json"):
        what = "is a link to nothing" if os.path.lexists(given) else "does not exist"
        raise MissingShardError(f"cannot open {given}: it {what}; check the path")
    cache = os.environ.get("HF_HUB_CACHE")
    if not cache:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        cache = os.path.join(os.environ.get("HF_HOME") or os.path.join(base, "huggingface"), "hub")
    model = Path(os.path.expanduser(cache)) / (name if "/" not in name else "models--" + name.replace("/", "--"))
    if not os.path.isdir(model):
        raise MissingShardError(
            f"cannot open {given}: no such path, and no {model.name} in the hub cache {model.parent}; "
            f"check the path, or fetch the model with `hf download {model.name[8:].replace('--', '/', 1)}`"
        )
    return model


def _snapshot(model: Path) -> Path:
    """The snapshot refs/main points to, or the only one there is."""
    ref = model / "refs" / "main"
    snapshots, chosen = model / "snapshots", ""
    if os.path.exists(ref):
        fd = open_regular(ref)
        try:
            chosen = read_at(fd, min(os.fstat(fd).st_size, 256), 0, ref).decode("utf-8", "replace").strip()
        finally:
            os.close(fd)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", chosen):
            raise UnsafePathError(
                f"{ref}: expected the name of a snapshot, found {show(chosen)}; fetch the model again"
            )
    found = [name for name in _listdir(snapshots) if os.path.isdir(snapshots / name)]
    if not found:
        raise MissingShardError(f"cannot open {model}: it has no snapshot; fetch the model again")
    if chosen not in found and len(found) > 1:
        reason = f"{len(found)} snapshots ({listing(found)}) and no refs/main that chooses"
        raise FormatError(f"cannot open {model}: found {reason}; open one of the folders in snapshots/")
    snapshot = snapshots / (chosen if chosen in found else found[0])
    if os.path.islink(snapshot):
        raise UnsafePathError(f"cannot open {snapshot}: expected a folder, found a link; open what it points to")
    return snapshot

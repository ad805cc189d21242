"""The safetensors container: one file, the shards of an index, a numbered set, or the row slices of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import compress, repeat
from operator import eq

from ... import dtypes
from ...dtypes import PACKED
from ...errors import CutShortError, FormatError, UnsupportedCheckpointError
from ...facts import Absent
from ...stores.base import File
from ...stores.strict_json import listing, show
from ...stores.together import together
from ..base import Columns, Contents, Folder, Kind, WholeTensors
from . import rank_slices
from .cut import Found, absent_of, known_headers, within
from .entries import Header
from .header import read_header
from .index import INDEX, SAFETENSORS, ShardSet, check_weight_map, find_shards


class Safetensors:
    """Opens `.safetensors` files, their indexes, and folders that hold either."""

    name = "safetensors"
    rank = 10

    def recognises(self, folder: Folder) -> bool:
        names = folder.names if folder.named is None else [folder.named]
        return any(name.endswith(SAFETENSORS) or INDEX.fullmatch(name) for name in names)

    def lacks(self, folder: Folder) -> Absent | None:
        is_of_ranks = folder.named is None and rank_slices.files_of(folder)
        return None if is_of_ranks else find_shards(folder).absent

    def read(self, folder: Folder) -> Contents:
        if folder.named is None and (names := rank_slices.files_of(folder)):
            return rank_slices.read(folder, names)
        shards = find_shards(folder)
        files = [shards.found.get(name) or folder.store.open(name) for name in shards.names]
        found = read_headers(files)
        headers, absent = known_headers(found), absent_of(folder, shards, found)
        for file, header in headers.items():
            rank_slices.refuse_alone(file, header)
        remarks = list(shards.remarks)
        if shards.weight_map is None:
            _check_once(folder, headers)
        else:
            keys = {file.name: list(header.keys) for file, header in headers.items()}
            looked_into = frozenset(keys)
            for key, name in absent.homes.items() if absent and absent.homes else ():
                if name not in looked_into:  # it holds what the index says
                    keys.setdefault(name, []).append(key)
            remarks += check_weight_map(shards.weight_map, keys, f"{folder.store.path}/{shards.index_name}")
        metadata, differing = merged_metadata(headers)
        headers |= {
            file: within(file, headers[file]) for file, one in found.items() if one is not headers.get(file, one)
        }
        used = {*shards.names, *([shards.index_name] if shards.index_name else [])}
        absent = _sized(shards, absent, headers)
        num_named = len(shards.weight_map or ()) - len(absent.homes or () if absent else ())
        twice = shards.weight_map and num_named < sum(len(header.keys) for header in headers.values())
        chosen = shards.weight_map if twice else None
        tensors = WholeTensors([_columns(file, header, chosen) for file, header in headers.items()])
        said = (*remarks, *differing)
        return Contents(tensors, tuple(headers), metadata, frozenset(used), said, shards.named, absent)


def _sized(shards: ShardSet, absent: Absent | None, headers: Mapping[File, Header]) -> Absent | None:
    """What is missing, with its bytes, where the index says how many there are in all and that can be."""
    total = shards.index_metadata.get("total_size")
    if absent is None or type(total) is not int:
        return absent
    rest = total - sum(kind.nbytes for header in headers.values() for kind in header.kinds)
    return replace(absent, nbytes=rest) if 0 < rest < 1 << 63 else absent


def read_headers(files: Iterable[File]) -> dict[File, Found]:
    """Each file's header, or how it is cut short; as many at a time as the files say that reads may be in flight."""
    wanted = list(files)
    num_threads = max((file.cost.num_in_flight for file in wanted), default=1)
    return dict(zip(wanted, together(_header, wanted, num_threads), strict=True))


def _header(file: File) -> Found:
    try:
        return read_header(file)
    except CutShortError as error:
        return error


def merged_metadata(headers: Mapping[File, Header]) -> tuple[dict[str, str], list[str]]:
    """The `__metadata__` that the files agree on, and a remark on each field in which they do not."""
    metadata: dict[str, str] = {}
    values: dict[str, dict[str, str]] = {}  # of fields that differ: value -> the first file that says so
    origin: dict[str, str] = {}
    for file, header in headers.items():
        for name, text in header.metadata.items():
            if metadata.setdefault(name, text) != text:
                values.setdefault(name, {metadata[name]: origin[name]}).setdefault(text, file.name)
            origin.setdefault(name, file.name)
    remarks = []
    for name, said in values.items():
        del metadata[name]
        which = ", ".join(f"{show(text)} in {show(where)}" for text, where in list(said.items())[:3])
        more = f" and {len(said) - 3} more" if len(said) > 3 else ""
        remarks.append(f"the files' __metadata__ differs in {show(name)}, which is left out: {which}{more}")
    return metadata, remarks


def _check_once(folder: Folder, headers: Mapping[File, Header]) -> None:
    """Without an index that decides, a tensor may stand in one file only."""
    homes: dict[str, str] = {}
    for file, header in headers.items():
        for key in homes.keys() & header.keys if homes else ():
            raise FormatError(
                f"{listing([key])} stands in two shards of {folder.path}: {homes[key]} and {file.name}; remove one"
            )
        homes.update(dict.fromkeys(header.keys, file.name))


def _columns(file: File, header: Header, weight_map: Mapping[str, str] | None) -> Columns:
    """The tensors of a file, but for those that the index says to read from another."""
    keys, kinds, starts = header.keys, header.kinds, header.starts
    if weight_map is not None:
        here = list(map(eq, map(weight_map.__getitem__, keys), repeat(file.name)))
        if not all(here):
            keys, kinds, starts = list(compress(keys, here)), list(compress(kinds, here)), list(compress(starts, here))
    if any(kind.code in PACKED for kind in set(kinds)):
        kinds = [_packed(file, key, kind) for key, kind in zip(keys, kinds, strict=True)]
    return Columns(file, keys, starts, kinds)


def _packed(file: File, key: str, kind: Kind) -> Kind:
    """The kind as it is read: of values narrower than a byte, the last axis counts bytes."""
    try:
        return kind._replace(dims=dtypes.packed(kind.code, kind.dims))
    except UnsupportedCheckpointError as error:
        raise UnsupportedCheckpointError(f"cannot open {file.path}: {show(key)}: {error}") from None


CONTAINER = Safetensors()

"""Files that end too early, as those of an unfinished download: what is there of them, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import compress

from ...errors import CutShortError
from ...facts import Absent
from ...stores.base import File
from ..base import Folder
from .entries import Header
from .index import ShardSet

Found = Header | CutShortError  # of a file


def known_headers(found: Mapping[File, Found]) -> dict[File, Header]:
    """What the headers say, also of what is cut off. Raises CutShortError where no file's header is whole."""
    known = {file: one.found if isinstance(one, CutShortError) else one for file, one in found.items()}
    headers = {file: one for file, one in known.items() if isinstance(one, Header)}
    for one in found.values() if not headers else ():
        if isinstance(one, CutShortError):
            raise one
    return headers


def absent_of(folder: Folder, shards: ShardSet, found: Mapping[File, Found]) -> Absent | None:
    """What is not there: shards that are missing, and of others what lies beyond their end."""
    errors = {file: one for file, one in found.items() if isinstance(one, CutShortError)}
    if not errors:
        return shards.absent
    absent = shards.absent or Absent(folder.path, (), 0, len(shards.names), {}, begun=folder.store.unfinished())
    homes = None if absent.homes is None else dict(absent.homes)
    weight_map = shards.weight_map or {}
    unknown = {file.name: list[str]() for file, error in errors.items() if not isinstance(error.found, Header)}
    for key, name in weight_map.items() if unknown else ():
        if name in unknown:
            unknown[name].append(key)
    for file, error in errors.items():
        if isinstance(error.found, Header):
            is_there = _is_there(error.found, file)
            beyond = [key for key, here in zip(error.found.keys, is_there, strict=True) if not here]
        else:
            beyond = unknown[file.name]
            homes = homes if shards.weight_map is not None else None  # nobody knows what it holds
        if homes is not None:
            homes |= {key: file.name for key in beyond if weight_map.get(key, file.name) == file.name}
    cut = tuple(file.name for file in errors)
    return replace(
        absent,
        names=(*absent.names, *cut),
        num_missing=absent.num_missing + len(cut),
        homes=homes,
        cut=cut,
        damage=str(next(iter(errors.values()))),
    )


def within(file: File, header: Header) -> Header:
    """The header without what lies beyond the file's end."""
    is_there = _is_there(header, file)
    if all(is_there):
        return header
    return header._replace(
        keys=list(compress(header.keys, is_there)),
        kinds=list(compress(header.kinds, is_there)),
        starts=list(compress(header.starts, is_there)),
    )


def _is_there(header: Header, file: File) -> list[bool]:
    return [start + kind.nbytes <= file.size for kind, start in zip(header.kinds, header.starts, strict=True)]

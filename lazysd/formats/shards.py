"""Shards that belong to a checkpoint and are not there, or not all of them: what an index or a numbered set says."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import islice

from ..errors import FormatError
from ..facts import Absent
from ..stores.strict_json import listing
from .base import Folder

MOST_NAMED = 100  # missing shards that are listed; names of files claim up to 10^9


def lacking(folder: Folder, index: str, weight_map: Mapping[str, str], missing: Collection[str]) -> Absent | None:
    """What an index names and the folder lacks; None where nothing is missing."""
    if not missing:
        return None
    gone = set(missing)
    homes = {key: shard for key, shard in weight_map.items() if shard in gone}
    num_shards = len(set(weight_map.values()))
    begun = folder.store.unfinished()
    return Absent(f"{folder.store.path}/{index}", tuple(missing), len(missing), num_shards, homes, begun=begun)


def check_numbered(folder: Folder, names: list[str], pattern: re.Pattern[str]) -> Absent | None:
    """Without an index, files belong together only where their names say so, 1 to N. One file may have any name.

    Args:
        folder: where they are.
        names: of all files with weights.
        pattern: of a numbered name; its groups are what stands before the number, the number, and how many there are.

    Returns:
        The numbers that are missing; None where none is.
    """
    path = folder.path
    parts = [match.groups() if (match := pattern.fullmatch(name)) else None for name in names]
    if parts == [None] or not names:
        return None
    sets = {(part[0], int(part[2])) if part else None for part in parts}
    if len(sets) > 1 or None in sets:
        raise FormatError(
            f"cannot open {path}: expected an index or one numbered set, found {len(names)} files without an index, "
            f"{listing(names)}; open one of them, or write the index"
        )
    total = int(parts[0][2]) if parts[0] else 0
    numbers = [int(part[1]) for part in parts if part]
    if len(set(numbers)) < len(names) or not 1 <= min(numbers) <= max(numbers) <= total:
        raise FormatError(
            f"cannot open {path}: expected {total} shards, found {len(names)} whose numbers do not fit together "
            f"({listing(names)}); open a single file by its path, or write the index"
        )
    if len(names) == total:
        return None
    stem, digits = names[0].rsplit("-of-", 1)[0].rpartition("-")[::2]
    absent = islice((number for number in range(1, total + 1) if number not in numbers), MOST_NAMED)
    gone = tuple(f"{stem}-{number:0{len(digits)}}-of-{names[0].rsplit('-of-', 1)[1]}" for number in absent)
    return Absent(path, gone, total - len(names), total, begun=folder.store.unfinished())

"""What lies in a folder beside the weights that were read: config, side files to copy, and what is left out.

Every file of the folder is part of the checkpoint, or a side file, or named in a remark.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..stores.base import File
from ..stores.folder import NOWHERE
from ..stores.strict_json import listing, read_json
from .base import WEIGHTS, Contents, Folder, sentence

CONFIG = "config.json"
MANIFEST = "lazysd.manifest.json"  # of the save that made this folder; the next one writes its own
ADAPTER_CONFIG, ADAPTER_STAMP = "adapter_config.json", "automodel_peft_config.json"
_ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_STAMP)
_ADAPTER_WEIGHTS = re.compile(r"adapter_model\b.*")
# what follows the suffix of half a download, or of an old copy
_LEFT_BEHIND = re.compile(r"(\.(tmp|temp|part|partial|incomplete|bak|backup|old|orig|\d+)|~)$")
_INDEX = re.compile(r".+\.(?:safetensors|bin|pt|pth)\.index(?:\.[^./]+)?\.json")


class Beside(NamedTuple):
    """What stands beside the tensors."""

    config: dict[str, Any] | None
    adapter_config: dict[str, Any] | None  # of PEFT
    adapter_stamp: dict[str, Any] | None  # of NeMo Automodel
    side_files: tuple[File, ...]  # copied by a save as they are
    remarks: tuple[str, ...]

    @property
    def is_adapter(self) -> bool:
        """Whether what was read is an adapter that says what it is."""
        return self.adapter_config is not None or self.adapter_stamp is not None


def beside(folder: Folder, contents: Contents) -> Beside:
    """Read the JSON files that say what the tensors are, and sort all others.

    Of a single file that the user named, only what tells what it holds is taken along.

    Raises:
        FormatError: a JSON file that cannot be read one way only.
        UnsafePathError: one that links out of the folder: without it, the checkpoint would be taken for another.
    """
    config = _json(folder, CONFIG)
    said = stamp = None
    is_adapter = _reads_adapter(folder, contents, config)
    if is_adapter:
        said, stamp = (_json(folder, name) for name in _ADAPTER_FILES)
    if folder.named is not None and folder.named in {file.name for file in contents.files}:
        taken = [folder.store.open(name) for name in _ADAPTER_FILES if is_adapter and folder.store.has(name)]
        return Beside(config, said, stamp, tuple(taken), ())
    sides, remarks = _sorted_out(folder, contents, is_adapter)
    return Beside(config, said, stamp, tuple(sides), tuple(remarks))


def _json(folder: Folder, name: str) -> dict[str, Any] | None:
    """What a JSON file says; None where there is none. One that cannot be opened is no reason to do without it."""
    there = folder.store.has(name) or (folder.named is None and name in folder.names)
    return read_json(folder.store.open(name), name, constants=True) if there else None


def _reads_adapter(folder: Folder, contents: Contents, config: dict[str, Any] | None) -> bool:
    """Whether the adapter's JSON files are about what was read. Beside a model, they are about another file."""
    if folder.named is not None and folder.named.endswith(WEIGHTS):
        return bool(_ADAPTER_WEIGHTS.fullmatch(os.path.basename(folder.named)))
    names = [os.path.basename(file.name) for file in contents.files]
    if any(_ADAPTER_WEIGHTS.fullmatch(name) for name in names):
        return True
    return config is None and not any(_ADAPTER_WEIGHTS.fullmatch(name) for name in folder.ending(*WEIGHTS))


def _sorted_out(folder: Folder, contents: Contents, is_adapter: bool) -> tuple[list[File], list[str]]:
    """(side files, remarks on everything else)."""
    left = [name for name in folder.listing.files if name not in contents.used and name != MANIFEST]
    weights = [name for name in left if _holds_weights(name)]
    rooms = {os.path.dirname(name) for name in weights} - {""}  # a subfolder is copied whole, or left out whole
    inside = [name for name in left if any(name.startswith(room + "/") for room in rooms)]
    beside_it = [name for name in weights if "/" not in name]
    adapters = [name for name in beside_it if _ADAPTER_WEIGHTS.fullmatch(name)]
    about_adapters = [name for name in left if name in _ADAPTER_FILES and not is_adapter]
    here = folder.store.path
    remarks = []
    if adapters or about_adapters:
        names = listing([*adapters, *about_adapters])
        step = f"open it by its own path, {here}/{adapters[0]}" if adapters else "it has no weights here"
        remarks.append(f"{here} holds a model, which was read, and an adapter, which is left out ({names}); {step}")
    others = [name for name in beside_it if name not in adapters and name not in contents.named]
    if others:
        remarks.append(
            f"not read and not copied from {here}, {sentence(len(others), 'file', others)}, of weights; "
            "to read one, open it by its own path"
        )
    if rooms:
        remarks.append(
            f"left out, {sentence(len(rooms), 'folder', sorted(f'{here}/{room}' for room in rooms))}, with weights "
            "inside; to read one, open it by its own path"
        )
    remarks += _on_others(folder, contents)
    gone = {*inside, *weights, *about_adapters}
    return [folder.store.open(name) for name in left if name not in gone], remarks


def _on_others(folder: Folder, contents: Contents) -> Iterable[str]:
    """A remark on each kind of thing that cannot be, or never is, copied."""
    kinds: dict[str, list[str]] = {}
    for name, kind in folder.listing.others.items():
        if name not in contents.used:
            kinds.setdefault(kind, []).append(name)
    for kind, names in kinds.items():
        step = (
            "; follow_links=True (--follow-links) copies what it points to"
            if "link" in kind and kind != NOWHERE
            else ""
        )
        yield f"not read and not copied from {folder.store.path}, {kind}: {listing(names)}{step}"
    if not folder.listing.is_whole:
        yield f"{folder.store.path} cannot be listed: only files of usual names were looked for"


def _holds_weights(name: str) -> bool:
    """Also in capitals, which some systems do not tell apart, and of copies and downloads that were left behind."""
    plain = name.lower()
    return _LEFT_BEHIND.sub("", plain).endswith(WEIGHTS) or bool(_INDEX.fullmatch(os.path.basename(plain)))

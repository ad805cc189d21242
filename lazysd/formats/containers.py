"""Which container a folder is: the members of this room are asked in the order of their ranks."""

from __future__ import annotations

from functools import cache

from ..doors import ranked
from ..errors import FormatError, MissingShardError, UnsupportedCheckpointError
from ..facts import Absent, begun_downloads
from ..stores.strict_json import listing
from .base import WEIGHTS, Container, Contents, Folder

_STEP = "convert it to safetensors with a tool you trust first"


@cache
def members() -> tuple[Container, ...]:
    """Every `CONTAINER` that a file or folder of this room defines."""
    return ranked(__package__, "CONTAINER")


def lacks(folder: Folder) -> Absent | None:
    """Which files are missing, by names and indexes alone; None also where no container recognises the folder."""
    for container in members():
        if container.recognises(folder):
            return container.lacks(folder)
    return None


def read(folder: Folder) -> Contents:
    """What the folder holds, by the first container that recognises it.

    Raises:
        MissingShardError, UnsupportedCheckpointError, FormatError: none does.
    """
    for container in members():
        if container.recognises(folder):
            return container.read(folder)
    if folder.named is not None:
        if folder.named.endswith(WEIGHTS):
            kind = folder.named[folder.named.rindex(".") :]
            raise UnsupportedCheckpointError(f"cannot open {folder.path}: lazysd never opens {kind} files; {_STEP}")
        raise FormatError(
            f"cannot open {folder.path}: expected a .safetensors file, its index.json, or a folder of them"
        )
    if others := folder.ending(*WEIGHTS):
        reason = f"found no safetensors, only files lazysd never opens: {listing(others)}"
        raise UnsupportedCheckpointError(f"cannot open {folder.path}: {reason}; {_STEP}")
    if parts := _parts(folder):
        raise MissingShardError(
            f"cannot open {folder.path}: it is a pipeline of several models, {listing(parts)}; open one of them, "
            f"for instance {folder.path.rstrip('/')}/{parts[0]}"
        )
    begun = begun_downloads(folder.store.unfinished())
    below = sorted({name.rpartition("/")[0] for name in folder.listing.files if "/" in name and name.endswith(WEIGHTS)})
    step = f"folders in it hold weights, {listing(below)}; open one of them" if below else "check the path"
    raise MissingShardError(f"cannot open {folder.path}: expected .safetensors files, found none{begun}; {step}")


def _parts(folder: Folder) -> list[str]:
    """Folders with weights of a pipeline as diffusers lays it out."""
    if "model_index.json" not in folder.names:
        return []
    weights = [name for name in folder.listing.files if name.endswith(".safetensors") and "/" in name]
    return sorted({name.rpartition("/")[0] for name in weights})

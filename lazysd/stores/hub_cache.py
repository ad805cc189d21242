"""The cache of the Hugging Face hub on the local disk: `models--org--name/{refs,snapshots,blobs}`.

Source: the cache layout of huggingface_hub, whose snapshots are links into blobs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from ..errors import FormatError, MissingShardError, ReadError, UnsafePathError
from ..nearest import did_you_mean
from .local import LocalFile
from .strict_json import listing, show

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*|models--[A-Za-z0-9_.-]+")
_REF_NBYTES = 256
LOCAL_DOWNLOADS = ".cache/huggingface/download"  # of `hf download --local-dir`, in that folder
_BEGUN = ".incomplete"
_MOST_NAMES = 1000  # of a folder that are looked at


def is_model(folder: Path) -> bool:
    """Whether a folder is a model of the cache, with snapshots in it."""
    return folder.name.startswith("models--") and os.path.isdir(folder / "snapshots")


def cached_model(given: Path) -> Path:
    """The cache folder of a model named "org/name" or "models--org--name"."""
    name = str(given)
    if os.path.lexists(given) or not _REPO.fullmatch(name) or given.suffix in (".safetensors", ".json"):
        what = "is a link to nothing" if os.path.lexists(given) else "does not exist"
        near = did_you_mean(given.name, _names(given.parent))
        raise MissingShardError(f"cannot open {given}: it {what}; check the path{near}")
    cache = os.environ.get("HF_HUB_CACHE")
    if not cache:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        cache = os.path.join(os.environ.get("HF_HOME") or os.path.join(base, "huggingface"), "hub")
    model = Path(os.path.expanduser(cache)) / (name if "/" not in name else "models--" + name.replace("/", "--"))
    if not os.path.isdir(model):
        repo = _repo(model.name)
        cached = [_repo(held) for held in _names(model.parent) if held.startswith("models--")]
        raise MissingShardError(
            f"cannot open {given}: no such path, and no {model.name} in the hub cache {model.parent}; "
            f"check the path, fetch the model with `hf download {repo}`, or read it where it is: hf://{repo}"
            f"{did_you_mean(repo, cached) or did_you_mean(given.name, _names(given.parent))}"
        )
    return model


def _repo(name: str) -> str:
    """ "org/name" of "models--org--name"."""
    return name[8:].replace("--", "/", 1)


def _names(folder: Path) -> list[str]:
    """What a folder holds, the first of it, to suggest some of it; nothing where it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return [entry.name for entry in islice(found, _MOST_NAMES)]
    except OSError:
        return []


def unfinished(folders: Iterable[Path]) -> tuple[int, ...]:
    """Bytes so far of the downloads that the hub's client has begun in these folders."""
    sizes: list[int] = []
    for folder in folders:
        with suppress(OSError), os.scandir(folder) as found:
            begun = (entry for entry in found if entry.name.endswith(_BEGUN) and entry.is_file(follow_symlinks=False))
            sizes += [entry.stat().st_size for entry in islice(begun, _MOST_NAMES)]
    return tuple(sizes)


def snapshot(model: Path) -> Path:
    """The snapshot refs/main points to, or the only one there is."""
    ref = model / "refs" / "main"
    snapshots, chosen = model / "snapshots", ""
    if os.path.exists(ref):
        file = LocalFile(str(ref))
        chosen = file.text(0, min(file.size, _REF_NBYTES)).decode("utf-8", "replace").strip()
        file.close()
        if not re.fullmatch(r"[A-Za-z0-9_-]+", chosen):
            raise UnsafePathError(
                f"{ref}: expected the name of a snapshot, found {show(chosen)}; fetch the model again"
            )
    try:
        found = sorted(name for name in os.listdir(snapshots) if os.path.isdir(snapshots / name))
    except OSError as error:
        raise ReadError(f"cannot list {snapshots}: {error.strerror}; check the path and its permissions") from error
    if not found:
        raise MissingShardError(f"cannot open {model}: it has no snapshot; fetch the model again")
    if chosen not in found and len(found) > 1:
        reason = f"{len(found)} snapshots ({listing(found)}) and no refs/main that chooses"
        raise FormatError(f"cannot open {model}: found {reason}; open one of the folders in snapshots/")
    path = snapshots / (chosen if chosen in found else found[0])
    if os.path.islink(path):
        raise UnsafePathError(f"cannot open {path}: expected a folder, found a link; open what it points to")
    return path

"""A local folder: which files it holds, and which names and links stay inside it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import FormatError, MissingShardError, ReadError, UnsafePathError
from .base import Listing, Options, Place, Store, is_hidden, is_plain
from .hub_cache import LOCAL_DOWNLOADS, cached_model, is_model, snapshot, unfinished
from .local import LocalFile
from .regular import check_regular, kind_of
from .strict_json import show

MOST_FILES = 100_000  # that are listed
MOST_LEVELS = 16  # of subfolders that are looked into
LINK, NOWHERE = "a link out of the folder", "a link to nothing"
_ALLOW = "allow it with follow_links=True (--follow-links)"


class LocalStore(Store):
    """A folder of the local file system. Links are followed inside it, and into the blobs of its own hub cache."""

    def __init__(self, folder: Path, options: Options = Options()):  # noqa: B008 - immutable
        self.path = str(folder)
        self.folder, self.options = folder, options
        self._home = Path(os.path.realpath(folder))
        self._allowed = [self._home, *_blobs(self._home)]

    def list(self, deep: bool = True) -> Listing:
        files: list[str] = []
        others: dict[str, str] = {}
        todo, seen = [("", 0)], {self._inode(self._home)}
        while todo:
            inside, level = todo.pop()
            for entry in self._entries(inside):
                name = inside + entry.name
                if len(files) + len(others) >= MOST_FILES:
                    others[inside + "…"] = f"beyond the first {MOST_FILES} files"
                    todo.clear()
                    break
                if is_hidden(name):
                    others[name] = "hidden"
                    continue
                what = self._what(entry, name)
                if what == "a directory" and not deep:
                    continue
                if what == "a directory":
                    inode = self._inode(self._home / name)
                    if entry.is_symlink() and not self.options.follow_links:
                        others[name] = "a link to a folder"
                    elif level == MOST_LEVELS or inode in seen:
                        others[name] = "a folder inside itself, or too deep"
                    else:
                        seen.add(inode)
                        todo.append((name + "/", level + 1))
                elif what:
                    others[name] = what
                else:
                    files.append(name)
        return Listing(tuple(sorted(files)), dict(sorted(others.items())))

    def _entries(self, inside: str) -> Sequence[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder / inside) as found:
                return sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            where = self.folder / inside
            raise ReadError(f"cannot list {where}: {error.strerror}; check the path and its permissions") from error

    def _what(self, entry: os.DirEntry[str], name: str) -> str:
        """What an entry is; empty for a regular file that may be opened."""
        try:
            if entry.is_symlink() and not entry.is_dir() and not self._may_follow(Path(os.path.realpath(entry.path))):
                return LINK
            return kind_of(entry.stat().st_mode)
        except FileNotFoundError:
            return NOWHERE
        except OSError as error:
            return f"unreadable ({error.strerror})"

    def _inode(self, path: Path) -> tuple[int, int]:
        try:
            status = os.stat(path)
        except OSError:
            return 0, 0
        return status.st_dev, status.st_ino

    def _may_follow(self, real: Path) -> bool:
        return self.options.follow_links or any(real.is_relative_to(place) for place in self._allowed)

    def has(self, name: str) -> bool:
        try:
            return is_plain(name) and os.path.isfile(self.folder / name)
        except OSError:
            return False

    def unfinished(self) -> tuple[int, ...]:
        return unfinished([*_blobs(self._home), self._home / "blobs", self._home / LOCAL_DOWNLOADS])

    def open(self, name: str) -> LocalFile:
        return LocalFile(str(self.real_path(name)), io=self.options.io, name=name)

    def real_path(self, name: str) -> Path:
        """Where a file of the folder really lies. Nothing outside the folder is looked at, let alone opened."""
        where = f"{self.path}: the file {show(name)}"
        if not is_plain(name):
            raise UnsafePathError(f"{where}: expected a plain name inside the folder; correct the index that names it")
        try:
            real = Path(os.path.realpath(self._home / name))
            if not self._may_follow(real):
                step = f"open that file by its own path, copy it into the folder, or {_ALLOW}"
                raise UnsafePathError(f"{where} is a link to {real}, outside the folder; {step}")
            check_regular(self._home / name, real.stat().st_mode)
        except FileNotFoundError:
            raise MissingShardError(f"{where} is missing; fetch it again") from None
        except OSError as error:
            kind = FormatError if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR) else ReadError
            raise kind(f"{where} cannot be reached: {error}; correct the index or the link") from error
        return real


class NamedFile(LocalStore):
    """A folder of which the user has named one file: that one may link anywhere."""

    def __init__(self, path: Path, options: Options):
        super().__init__(path.parent, options)
        self._named = path.name

    def real_path(self, name: str) -> Path:
        return Path(os.path.realpath(self.folder / name)) if name == self._named else super().real_path(name)


class Local:
    """Opens whatever else is a path of the local file system, and cached models by their names."""

    rank = 100

    def place(self, path: Any, options: Options) -> Place | None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return None
        text = os.fsdecode(path)
        if not text:
            raise MissingShardError("cannot open '': the path is empty; name a file, a folder or a cached model")
        given = Path(os.path.expanduser(text))
        if not os.path.exists(given):
            given = cached_model(given)
        if not os.path.isdir(given):
            check_regular(given, given.stat().st_mode)
            return Place(NamedFile(given, options), given.name)
        return Place(LocalStore(snapshot(given) if is_model(given) else given, options))


STORE = Local()


def _blobs(home: Path) -> list[Path]:
    """The blobs of the hub cache that a folder is a snapshot of, or part of one; wherever they really lie."""
    for place in (home, *home.parents):
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
            return [Path(os.path.realpath(place.parent.parent / "blobs"))]
    return []

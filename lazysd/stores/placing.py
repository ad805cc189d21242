"""Where a result goes: the destination, the hidden names beside it, and the renames that make the result appear.

At every instant the destination is absent, the old one, or the new one, complete. An old one is renamed aside, and
again before it is deleted, so that what a crash leaves behind says by its name whether it is whole.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import stat
from pathlib import Path

from ..errors import OutputExistsError, WriteError
from .faults import writing

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"  # a destination of this name is one file
_LONGEST_NAME_NBYTES = 120  # longer names are hashed: what is added must fit into 255 bytes, 143 on some systems
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # file systems whose folders need no sync, or know none


class Place:
    """A destination: a folder, or one file where its name ends in `.safetensors`."""

    def __init__(self, dst: str | os.PathLike[str]):
        text = os.fsdecode(dst)
        if not text or "\0" in text or not _is_name(text):
            raise WriteError(f"cannot write {text!r}: a destination needs a name that files can have")
        self.dst = Path(os.path.abspath(text))
        if not self.dst.name:
            raise OutputExistsError(f"{self.dst} is the root of the file system; name a folder in it")
        self.is_file = self.dst.suffix == SUFFIX
        self.building = self._beside("partial")
        self.old = self._beside("old")  # whole
        self.trash = self._beside("trash")  # being deleted

    def _beside(self, what: str) -> Path:
        name = os.fsencode(self.dst.name)
        shown = self.dst.name if len(name) <= _LONGEST_NAME_NBYTES else hashlib.sha256(name).hexdigest()[:32]
        return self.dst.with_name(f".{shown}.lazysd-{what}")

    def check_free(self, overwrite: bool) -> None:
        """Refuse to put the result where something is that may not go."""
        if blocking := next((one for one in self.dst.parents if os.path.lexists(one) and not os.path.isdir(one)), None):
            raise WriteError(f"cannot write {self.dst}: {blocking} is no folder; choose another destination")
        for path in (self.building, self.old, self.trash):
            _refuse_planted(path, may_be_file=self.is_file and path != self.building)
        if not os.path.lexists(self.dst) or (_is_empty_folder(self.dst) and not self.is_file):
            return
        if self.dst.is_dir() == self.is_file:
            kind = "a folder, and a name in .safetensors means one file" if self.is_file else "no folder"
            raise OutputExistsError(f"{self.dst} exists and is {kind}; choose another destination")
        if not overwrite:
            raise OutputExistsError(
                f"{self.dst} exists; choose another destination or pass overwrite=True (--overwrite)"
            )
        if not self.is_file and not any(_of_a_checkpoint(name) for name in os.listdir(self.dst)):
            raise OutputExistsError(
                f"{self.dst} holds no checkpoint, so it is not overwritten; choose another destination or remove it"
            )

    def recover(self) -> None:
        """Mend what a killed overwrite left: between its renames the old one goes back, after them it goes."""
        if os.path.lexists(self.old):
            if os.path.lexists(self.dst):
                _remove(self.trash)
                os.rename(self.old, self.trash)
            else:
                self._put_back()
        _remove(self.trash)

    def _put_back(self) -> None:
        """Give the old one its name again, where it has lost it."""
        if os.path.lexists(self.old) and not os.path.lexists(self.dst):
            try:
                os.rename(self.old, self.dst)
            except OSError as error:
                raise WriteError(
                    error.errno,
                    f"cannot rename {self.old} back to {self.dst}: {error.strerror}; it is whole, rename it by hand",
                ) from error

    def check_replaceable(self) -> None:
        """Find out before the work, not after it, whether what stands there can be renamed: aside, and back.

        Mount points, folders of a lower overlay and other people's in a sticky folder cannot.
        """
        if not os.path.lexists(self.dst):
            return
        if os.path.ismount(self.dst):
            raise WriteError(f"cannot replace {self.dst}: it is a mount point; write to a folder in it")
        try:
            os.rename(self.dst, self.old)
        except OSError as error:
            raise WriteError(
                error.errno, f"cannot replace {self.dst}: {error.strerror}; write to a new name"
            ) from error
        finally:
            self._put_back()

    def appear(self, result: Path, replace: bool) -> None:
        """Rename `result` to the destination; with `replace`, whatever is there goes aside first."""
        if self.is_file:
            self._appear_as_file(result, replace)
            return
        aside = replace and os.path.lexists(self.dst) and not _is_empty_folder(self.dst)
        with writing(self.dst):
            try:
                if aside:
                    os.rename(self.dst, self.old)
                os.rename(result, self.dst)
            except BaseException:
                if aside:
                    self._put_back()
                raise
        if self._is_lasting() and aside:
            self._let_go()

    def _appear_as_file(self, result: Path, replace: bool) -> None:
        with writing(self.dst):
            if replace:
                os.replace(result, self.dst)
            else:
                link_or_rename(result, self.dst)
        self._is_lasting()

    def _is_lasting(self) -> bool:
        """Whether the disk has the new name. It stands, so that this, too, is no failure."""
        try:
            sync_folder(self.dst.parent)
        except OSError as error:
            logger.warning(
                "%s is complete; whether its name would outlast a power cut is not known: %s", self.dst, error.strerror
            )
            return False
        return True

    def _let_go(self) -> None:
        """Delete the old one. The new one stands, so nothing that goes wrong here is a failure."""
        try:
            os.rename(self.old, self.trash)
            _remove(self.trash)
        except OSError as error:
            left = self.trash if os.path.lexists(self.trash) else self.old
            logger.warning("%s is complete; what it replaced could not be deleted: %s: %s", self.dst, left, error)


def _is_name(text: str) -> bool:
    """Whether the system has bytes for a name; it has none for most halves of surrogate pairs."""
    try:
        return bool(os.fsencode(text))
    except UnicodeEncodeError:
        return False


def link_or_rename(source: Path, target: Path) -> None:
    """Give a file another name, which nobody else may have taken meanwhile."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise OutputExistsError(f"{target} exists: another program made it meanwhile; it stays as it is") from None
    except OSError:  # a file system without links
        os.rename(source, target)
    else:
        os.unlink(source)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system knows how to."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except PermissionError:  # systems that do not open folders
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(fd)


def _refuse_planted(path: Path, may_be_file: bool) -> None:
    """Refuse a hidden name that somebody else made: through it a save would write, or delete, what is not ours."""
    try:
        found = os.lstat(path)
    except OSError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise WriteError(
            f"cannot write: {path} is a link to {os.readlink(path)!r}, which lazysd does not follow; remove it"
        )
    if not stat.S_ISDIR(found.st_mode) and not (may_be_file and stat.S_ISREG(found.st_mode)):
        raise WriteError(f"cannot write: {path} is no folder, so that no save has made it; remove it")
    if hasattr(os, "geteuid") and found.st_uid not in (os.geteuid(), os.stat(path.parent).st_uid):
        raise WriteError(f"cannot write: {path} belongs to another user; remove it or choose another destination")


def _of_a_checkpoint(name: str) -> bool:
    """Whether a file's name is one that a checkpoint's folder has."""
    return name.endswith((SUFFIX, ".safetensors.index.json")) or name in ("lazysd.manifest.json", ".metadata")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()

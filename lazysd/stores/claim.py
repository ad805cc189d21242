"""One run at a time in a folder: a lock where the file system has them, and a name in it that shows who came last."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import OutputExistsError, WriteError
from .faults import named
from .journal import no_links, write_file

fcntl: Any = None  # on systems without it, the owner file alone tells two runs apart
with suppress(ImportError):
    fcntl = importlib.import_module("fcntl")

logger = logging.getLogger(__name__)

OWNER = ".lazysd-owner"
MAX_TRIES = 100  # to lock a folder that other processes commit at the same moment
_CANNOT_LOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class Claim:
    """A run's claim on the folder that it builds `dst` in."""

    def __init__(self, folder: Path, dst: Path):
        self.folder, self.dst = folder, dst
        self.token = secrets.token_hex(8)  # which run this is; ranks of one run share it
        self.held = False
        self._fd: int | None = None

    def take(self) -> None:
        """Make the folder and lock it.

        Raises:
            OutputExistsError: another process holds it.
            WriteError: it cannot be made, or keeps disappearing.
        """
        for _ in range(MAX_TRIES):
            if self._taken():
                self.held = True
                return
        raise WriteError(f"cannot write {self.folder}: it keeps disappearing; who removes it?")

    def _taken(self) -> bool:
        """Lock the folder; False where it was committed or removed by another process just before."""
        is_made = False
        try:
            self.dst.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(exist_ok=True)
            is_made = True
            fd = os.open(self.folder, os.O_RDONLY | no_links())
        except OSError as error:
            if isinstance(error, FileNotFoundError) and is_made:
                return False
            if isinstance(error, PermissionError) and fcntl is None and self.folder.is_dir():
                return True  # a system that does not open folders
            raise named(error, self.folder) from error
        try:
            self._lock(fd)
            if os.path.samestat(os.fstat(fd), os.stat(self.folder)):
                self._fd, fd = fd, -1
                return True
        except FileNotFoundError:
            pass
        finally:
            if fd >= 0:
                os.close(fd)
        return False

    def _lock(self, fd: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputExistsError(f"another lazysd is writing {self.dst} right now; wait for it") from None
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                raise WriteError(error.errno, f"cannot lock {self.folder}: {error.strerror}") from error
            logger.warning(
                "%s: its file system has no locks (%s); let no other run write there", self.dst, error.strerror
            )

    def sign(self) -> None:
        """Leave this run's name in the folder."""
        write_file(self.folder / OWNER, self.token.encode())

    def stands(self) -> bool:
        """Whether no other run has taken the folder over, which only happens where locks do not lock."""
        try:
            return (self.folder / OWNER).read_bytes() == self.token.encode()
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def release(self) -> None:
        """Let others have the folder."""
        self.held = False
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):
                os.close(fd)

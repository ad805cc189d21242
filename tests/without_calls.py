"""Run as a program: lazysd's work in children in which calls of the system are missing; a line of JSON of each.

    python tests/without_calls.py SOURCE FOLDER

A child forgets the calls first and imports lazysd then. numpy and torch are imported before, by the parent.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = {
    "posix_fadvise": ["posix_fadvise", "POSIX_FADV_DONTNEED"],
    "posix_fallocate": ["posix_fallocate"],
    "O_DIRECT": ["O_DIRECT"],
    "preadv, pwritev": ["preadv", "pwritev"],
    "pread, pwrite and those": ["preadv", "pwritev", "pread", "pwrite"],
    "sched_getaffinity": ["sched_getaffinity"],
    "flags of open": ["O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "O_PATH", "O_SYNC", "O_DSYNC"],
    "statvfs": ["statvfs", "fstatvfs"],
    "owners, modes, other processes": [
        *("getuid", "geteuid", "getgid", "fchmod", "fchown", "chown"),
        *("copy_file_range", "pidfd_open", "fdatasync", "sync", "sysconf"),
    ],
    "set_blocking": ["set_blocking"],
}


def _forget(module: Any, names: list[str]) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def _no_module(name: str) -> None:
    sys.modules[name] = None  # type: ignore[assignment]


def _no_maps() -> None:
    import ctypes
    import mmap

    real = ctypes.CDLL

    def named_only(name: Any, *args: Any, **kwargs: Any) -> Any:
        if name is None:
            raise TypeError("bad argument type for built-in operation")  # as on Windows
        return real(name, *args, **kwargs)

    ctypes.CDLL = named_only  # type: ignore[misc, assignment]
    _forget(mmap, [name for name in dir(mmap) if name.startswith(("MAP_", "PROT_", "MADV_"))])


def _no_open_folders() -> None:
    """As on Windows: a folder cannot be opened, and so be neither locked nor made durable."""
    _no_module("fcntl")
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    real = os.open

    def files_only(path: Any, *args: Any, **kwargs: Any) -> int:
        if not isinstance(path, int) and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    os.open = files_only


def _no_links() -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(1, "Operation not permitted")

    os.symlink = os.link = refuse


def _open_files_stay() -> None:
    """As on Windows: what is open, or lies in a folder with something open, is neither renamed nor deleted."""
    for name in ("rename", "replace", "unlink", "remove", "rmdir"):
        _guard(name)


def _guard(name: str) -> None:
    real = getattr(os, name)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        paths = [os.path.abspath(os.fspath(arg)) for arg in args if not isinstance(arg, int)]
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                held = os.readlink(f"/proc/self/fd/{fd}")
                if any(held == path or held.startswith(path + "/") for path in paths):
                    raise PermissionError(13, f"{name}: {held} is open")
        return real(*args, **kwargs)

    def passing_on(*args: Any, **kwargs: Any) -> Any:
        try:
            return guarded(*args, **kwargs)
        except PermissionError as error:
            if "is open" not in str(error):
                raise
            LOCKED.append(str(error))
            raise

    setattr(os, name, passing_on)


LOCKED: list[str] = []


def _all() -> None:
    for take in WITHOUT.values():
        if take is not _all:
            take()


WITHOUT: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    **{what: (lambda names=names: _forget(os, names)) for what, names in NAMES.items()},
    "fcntl": lambda: _no_module("fcntl"),
    "resource": lambda: _no_module("resource"),
    "signals": lambda: _forget(signal, ["SIGHUP", "SIGKILL", "SIGPIPE", "SIGALRM", "pthread_sigmask"]),
    "maps": _no_maps,
    "open folders": _no_open_folders,
    "links": _no_links,
    "open files": _open_files_stay,
}
WITHOUT["all of it"] = _all


def _work(source: Path, folder: Path, by_command: bool) -> dict[str, Any]:
    """Convert, verify, and resume what was interrupted: what came of each. By the command too, where asked."""
    import torch

    import lazysd
    from lazysd.checking import check_folder
    from lazysd.cli.main import main

    def native() -> Any:
        return lazysd.open(source).convert("nemo", source="hf", family="qwen3_moe")

    said: dict[str, Any] = {}
    out, again = folder / "native", folder / "again"
    native().save(out, max_shard_size="4KB")
    said["verified"] = check_folder(out).sound
    pairs = [(lazysd.open(out)[key], lazysd.open(out, io="pread")[key]) for key in lazysd.open(out)]
    both = [[node.materialize().view(torch.uint8) for node in pair] for pair in pairs]
    said["maps read the same"] = all(torch.equal(*pair) for pair in both)

    def stop(*args: Any) -> None:
        if list(folder.glob(".again*/*.safetensors")):
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        native().save(again, max_shard_size="4KB", progress=stop, workers=1)
    said["interrupted"] = not again.exists()
    said["kept"] = len(list(folder.glob(".again*/*.safetensors")))
    native().save(again, max_shard_size="4KB")
    if by_command:
        shards = ["--max-shard-size", "4KB", "--no-progress", "-q"]
        said["commands"] = [
            main(["convert", str(source), str(again), "--to", "nemo", "--overwrite", *shards]),
            main(["verify", str(again), "--against", str(source), "-q"]),
        ]
    for path in (out, again):
        digest = [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in path.glob("*.safetensors")]
        said[path.name] = sorted(digest)
    return said


def _in_child(what: str, source: Path, folder: Path) -> dict[str, Any]:
    hear, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        with open(hear, encoding="utf-8") as answer:
            text = answer.read()
        os.waitpid(child, 0)
        return dict(json.loads(text or '{"error": "the child died"}'))
    folder.mkdir()
    said: dict[str, Any] = {}
    try:
        WITHOUT[what]()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            said = _work(source, folder, by_command=what in ("nothing", "all of it"))
        said["printed"] = printed.getvalue()
    except BaseException:  # noqa: BLE001 - whatever it was is the answer
        said["error"] = traceback.format_exc()
    said["locked"] = LOCKED
    with open(tell, "w", encoding="utf-8") as answer:
        json.dump(said, answer)
    os._exit(0)


def run(source: Path, folder: Path) -> None:
    import numpy  # noqa: F401 - before the fork, so that each child need not
    import torch  # noqa: F401

    for number, what in enumerate(WITHOUT):
        print(json.dumps({"without": what, **_in_child(what, source, folder / str(number))}), flush=True)  # noqa: T201


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))

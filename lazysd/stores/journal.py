"""The journal of a save: the shards that are finished, a line each. A line that is damaged counts for nothing."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

JOURNAL = ".lazysd-journal.jsonl"
_LONGEST_NBYTES = 64 << 20  # of a line: a shard of eight million tensors


class Finished(NamedTuple):
    """A shard that is complete on disk."""

    nbytes: int
    crc32: int  # of the whole file
    checksums: bytes  # CRC-32 of every tensor, 4 bytes each, big-endian, in the order of the file


class Notes(NamedTuple):
    """What a journal says."""

    plan: str | None  # fingerprint of the plan; None where no line tells
    about: dict[str, str]  # the plan in words
    finished: dict[str, Finished]
    failed: bool = False  # the run ended in an error that running it again would meet again


class Journal:
    """Lines are appended and made durable one by one, from any thread; each begins with the CRC-32 of its rest."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()

    def begin(self, plan: str, about: Mapping[str, str], finished: Mapping[str, Finished]) -> None:
        """Put a journal that says this in the place of whatever was there, in one step."""
        fresh = self.path.with_name(self.path.name + ".new")
        lines = [_line({"plan": plan, "about": dict(about)})]
        lines += [_line(_entry(plan, name, shard)) for name, shard in finished.items()]
        write_file(fresh, b"".join(lines))
        os.replace(fresh, self.path)

    def note(self, plan: str, name: str, shard: Finished) -> None:
        """A shard is finished."""
        self._append(_line(_entry(plan, name, shard)))

    def note_failure(self, plan: str) -> None:
        """The run ended in an error that is no fault of the disk's, and nobody's wish."""
        self._append(_line({"plan": plan, "failed": True}))

    def _append(self, line: bytes) -> None:
        with self._lock:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | no_links())
            with open(fd, "ab") as journal:
                journal.write(line)
                journal.flush()
                os.fsync(journal.fileno())

    def read(self) -> Notes:
        """What its intact lines say; nothing where there is no journal."""
        if self.path.is_symlink() or not self.path.is_file():
            return Notes(None, {}, {})
        plan: str | None = None
        about: dict[str, str] = {}
        finished: dict[str, Finished] = {}
        failed = False
        for line in self._lines():
            if not isinstance(line.get("plan"), str) or plan not in (None, line["plan"]):
                continue
            plan = line["plan"]
            if isinstance(line.get("about"), dict):
                about = line["about"]
            elif "failed" in line:
                failed = True
            elif shard := _shard(line):
                finished[line["shard"]] = shard
        return Notes(plan, about, finished, failed)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The content of intact lines; what has no end is read in pieces, none of which is a line."""
        with open(self.path, "rb") as file:
            while raw := file.readline(_LONGEST_NBYTES):
                if (line := _parsed(raw.rstrip(b"\r\n"))) is not None:
                    yield line


def write_file(path: Path, data: bytes) -> None:
    """A small new file, durable; never through a link."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | no_links(), 0o666)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def no_links() -> int:
    """The flags that make an open fail at a link, and close it in programs that are started; 0 where there are none."""
    return getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def _entry(plan: str, name: str, shard: Finished) -> dict[str, Any]:
    return {
        "plan": plan,
        "shard": name,
        "nbytes": shard.nbytes,
        "crc32": shard.crc32,
        "tensors": shard.checksums.hex(),
    }


def _line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """A line's content, None where a crash cut it short or a bit has changed since."""
    checksum, _, text = raw.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _shard(line: dict[str, Any]) -> Finished | None:
    try:
        shard = Finished(int(line["nbytes"]), int(line["crc32"]), bytes.fromhex(line["tensors"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return shard if isinstance(line.get("shard"), str) else None

"""One source file under several readers: opened once, closed only when nobody reads, never mixed up with another."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest

from lazysd.errors import ClosedCheckpointError, MissingShardError, ReadError, SourceChangedError
from lazysd.stores.local import LocalFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 16)
    return tmp_path / "file"


def read(file: LocalFile, offset: int, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    file.read([(memoryview(buffer), offset)])
    return bytes(buffer)


def test_opened_at_the_first_read_and_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, original = [], os.open
    monkeypatch.setattr(os, "open", lambda *args: opened.append(args[0]) or original(*args))  # type: ignore[func-returns-value]
    file = LocalFile(str(path))
    assert opened == []
    crew = [threading.Thread(target=read, args=(file, 0, 10)) for _ in range(8)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert read(file, 3, 4) == bytes((3, 4, 5, 6))
    assert opened == [str(path)]


def test_a_read_that_meets_close_reads_its_own_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor's number must not be given to another file while a read still uses it."""
    other = path.with_name("other")
    other.write_bytes(b"\xff" * 4096)
    file, preadv, taken = LocalFile(str(path)), os.preadv, []

    def closing(fd: int, buffers: list[memoryview], offset: int) -> int:
        if not taken:
            file.close()
            gc.collect()
            taken.append(os.open(other, os.O_RDONLY))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", closing)
    try:
        assert read(file, 0, 8) == bytes(range(8))
    finally:
        os.close(taken[0])
    with pytest.raises(ClosedCheckpointError, match="open it again"):
        read(file, 0, 8)


def test_closing_gives_the_descriptor_back(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    file = LocalFile(str(path))
    read(file, 0, 1)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    file.close()
    assert len(os.listdir("/proc/self/fd")) == before
    forgotten = LocalFile(str(path))
    read(forgotten, 0, 1)
    del forgotten
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_views_outlive_the_file(path: Path) -> None:
    file = LocalFile(str(path))
    view = file.view(16, 4)
    assert view is not None
    file.close()
    assert bytes(view) == bytes((16, 17, 18, 19))
    view[0] = 99  # private: the file stays as it is
    assert path.read_bytes()[16] == 16
    with pytest.raises(ClosedCheckpointError):
        file.view(0, 1)
    assert LocalFile(str(path), io="pread").view(0, 1) is None


def test_what_can_happen_to_a_file(path: Path) -> None:
    file = LocalFile(str(path))
    with pytest.raises(ReadError, match="ends at byte 4096, 4 bytes short"):
        read(file, 4092, 8)
    for change, error, match in (
        (lambda: path.write_bytes(b"other"), SourceChangedError, "was modified since"),
        (path.unlink, MissingShardError, "is gone since"),
    ):
        late = LocalFile(str(path))
        change()
        with pytest.raises(error, match=match):
            read(late, 0, 1)
    path.write_bytes(b"now")
    with pytest.raises(SourceChangedError, match="changed while it was read"):
        file.check_unchanged()
    cut = LocalFile(str(path))
    read(cut, 0, 1)
    os.truncate(path, 1)
    with pytest.raises(ReadError, match="truncated"):
        cut.view(0, 1)

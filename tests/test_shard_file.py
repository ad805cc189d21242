"""Writing at any offset, past the page cache and through it: the same bytes, also where the disk refuses."""

from __future__ import annotations

import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import lazysd
from lazysd.stores.shard_file import DIRECT_MIN_NBYTES, PAGE_NBYTES, ShardFile

HEADER = b"h" * 88


def aligned(data: bytes, offset: int) -> memoryview:
    """The data in memory whose address agrees with the offset modulo a page."""
    held = torch.empty(len(data) + PAGE_NBYTES, dtype=torch.uint8)
    start = (offset - held.data_ptr()) % PAGE_NBYTES
    view = memoryview(held.numpy())[start : start + len(data)]
    view[:] = data
    return view


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """Every pwrite: (offset, nbytes, whether it went past the page cache)."""
    noted: list[tuple[int, int, bool]] = []
    pwrite, opened, direct = os.pwrite, os.open, set()

    def noting_open(path: object, flags: int, *rest: int) -> int:
        fd = opened(path, flags, *rest)  # type: ignore[arg-type]
        direct.discard(fd)
        if flags & os.O_DIRECT:
            direct.add(fd)
        return fd

    def noting(fd: int, data: memoryview, offset: int) -> int:
        noted.append((offset, len(data), fd in direct))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "open", noting_open)
    monkeypatch.setattr(os, "pwrite", noting)
    return noted


def write(path: Path, data: bytes, cuts: list[int], align: bool = True, threads: int = 3) -> None:
    file = ShardFile(path, len(HEADER) + len(data))
    ends = [*cuts, len(data)]

    def one(start: int, stop: int) -> None:
        offset = len(HEADER) + start
        part = data[start:stop]
        file.write(aligned(part, offset if align else offset + 8), offset)

    with ThreadPoolExecutor(threads) as crew:
        list(crew.map(one, [0, *cuts], ends))
    file.finish([(0, HEADER)])


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_every_byte_lands(tmp_path: Path, seed: int, align: bool) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(3_000_000 + chance.randrange(5000))
    cuts = sorted(chance.sample(range(len(data)), chance.randrange(1, 9)))
    write(tmp_path / "file", data, cuts, align)
    assert (tmp_path / "file").read_bytes() == HEADER + data


def test_whole_pages_of_large_writes_go_past_the_cache(tmp_path: Path, calls: list[tuple[int, int, bool]]) -> None:
    data = random.Random(0).randbytes(2 * DIRECT_MIN_NBYTES)
    write(tmp_path / "file", data, [], threads=1)
    past = [(offset, nbytes) for offset, nbytes, direct in calls if direct]
    if not past:
        pytest.skip("the file system of the temporary folder has no O_DIRECT")
    first = PAGE_NBYTES
    assert past == [(first, (len(HEADER) + len(data)) // PAGE_NBYTES * PAGE_NBYTES - first)]
    assert (tmp_path / "file").read_bytes() == HEADER + data


def test_small_writes_go_through_the_cache(tmp_path: Path, calls: list[tuple[int, int, bool]]) -> None:
    write(tmp_path / "file", bytes(DIRECT_MIN_NBYTES // 2), [100])
    assert not any(direct for _, _, direct in calls)


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_disk_that_refuses_gets_the_rest_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    pwrite, refused = os.pwrite, []

    def refuse(fd: int, data: memoryview, offset: int) -> int:
        if fd == file._direct:
            if refused:
                raise OSError(refusal, "no")
            refused.append(offset)
            return pwrite(fd, data[: 3 * PAGE_NBYTES], offset)  # a short write first
        return pwrite(fd, data, offset)

    data = random.Random(1).randbytes(2 * DIRECT_MIN_NBYTES + 77)
    file = ShardFile(tmp_path / "file", len(HEADER) + len(data))
    monkeypatch.setattr(os, "pwrite", refuse)
    file.write(aligned(data, len(HEADER)), len(HEADER))
    file.finish([(0, HEADER)])
    assert (tmp_path / "file").read_bytes() == HEADER + data


def test_other_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = ShardFile(tmp_path / "file", 2 * DIRECT_MIN_NBYTES)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        file.write(aligned(bytes(2 * DIRECT_MIN_NBYTES), 0), 0)
    file.close()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    write(tmp_path / "file", bytes(3 * DIRECT_MIN_NBYTES), [5000])
    ShardFile(tmp_path / "other", 10).close()
    with pytest.raises(FileNotFoundError):
        ShardFile(tmp_path / "none" / "file", 10)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_save_of_large_tensors(tmp_path: Path, num_workers: int, calls: list[tuple[int, int, bool]]) -> None:
    """Through the whole of a save, with odd tensors between large ones so that offsets are no multiples of a page."""
    tensors = {f"{n}": torch.randint(0, 256, (n * 700_001,), dtype=torch.uint8) for n in range(1, 6)}
    composed = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()})
    composed.save(tmp_path / "out", workers=num_workers)
    saved = lazysd.open(tmp_path / "out", io="pread")
    assert all(torch.equal(saved[key].materialize(), tensor) for key, tensor in tensors.items())
    sizes = {direct: sum(n for _, n, d in calls if d == direct) for direct in (True, False)}
    assert sizes[True] > 10 * sizes[False] or not sizes[True]

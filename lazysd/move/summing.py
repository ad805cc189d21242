"""The CRC-32 of runs of files, read by several workers in pieces that are put together again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import FormatError, ReadError
from ..stores.crc import combine, crc32
from ..stores.journal import no_links
from ..stores.system import read_at
from . import workers

PIECE_NBYTES = 16 << 20  # that one worker takes at a time
BUFFER_NBYTES = 1 << 20


class Span(NamedTuple):
    """A run of a file's bytes with a name: a tensor's key, None for a header or a whole file."""

    name: str | None
    start: int
    nbytes: int


class _Piece(NamedTuple):
    file: str
    number: int  # of its span in the file
    start: int
    nbytes: int


def sums_of(
    folder: Path, spans: Mapping[str, list[Span]], num_workers: int, advance: Callable[[int], None]
) -> dict[str, list[int]]:
    """The CRC-32 of every span of every file, by the file's name; each worker has one buffer.

    Args:
        folder: where the files are; links are not followed.
        spans: of each file, by its name.
        advance: told the number of bytes read, from one thread at a time.

    Raises:
        FormatError: a file has become shorter. ReadError: it cannot be read.
    """
    sums: dict[str, list[dict[int, tuple[int, int]]]] = {name: [{} for _ in parts] for name, parts in spans.items()}
    lock, own = threading.Lock(), threading.local()

    def work(job: list[_Piece]) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = memoryview(bytearray(BUFFER_NBYTES))
        path = folder / job[0].file
        at = job[0].start
        try:
            fd = os.open(path, os.O_RDONLY | no_links())
            try:
                for name, number, at, nbytes in job:
                    sums[name][number][at] = (_crc(fd, at, nbytes, own.buffer, path), nbytes)
            finally:
                os.close(fd)
        except OSError as error:
            raise ReadError(f"cannot read {path} from byte {at} on: {error.strerror}") from error
        with lock:
            advance(sum(piece.nbytes for piece in job))

    workers.run(_jobs(spans), work, num_workers)
    return {name: [_together(pieces) for pieces in parts] for name, parts in sums.items()}


def _jobs(spans: Mapping[str, list[Span]]) -> Iterator[list[_Piece]]:
    """Pieces of one file that lie one after the other."""
    for name, parts in spans.items():
        job: list[_Piece] = []
        room = PIECE_NBYTES
        for number, span in enumerate(parts):
            at, end = span.start, span.start + span.nbytes
            while at < end:
                nbytes = min(end - at, room)
                job.append(_Piece(name, number, at, nbytes))
                at, room = at + nbytes, room - nbytes
                if not room:
                    yield job
                    job, room = [], PIECE_NBYTES
        if job:
            yield job


def _crc(fd: int, start: int, nbytes: int, buffer: memoryview, path: Path) -> int:
    crc = 0
    while nbytes:
        got = read_at(fd, buffer[: min(nbytes, len(buffer))], start)
        if not got:
            raise FormatError(f"{path} ended at byte {start} while it was being read; is somebody writing it?")
        crc = crc32(buffer[:got], crc)
        start, nbytes = start + got, nbytes - got
    return crc


def _together(pieces: Mapping[int, tuple[int, int]]) -> int:
    crc = 0
    for _, (piece, nbytes) in sorted(pieces.items()):
        crc = combine(crc, piece, nbytes)
    return crc

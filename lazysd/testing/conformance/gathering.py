"""What a kernel keeps to that reads files by itself. Inherit the class, say which kernel it is, run it with pytest.

class TestMyKernelReads(GatherSuite):
    kernel = MyKernel()
"""

from __future__ import annotations

import errno
import os
import random
from abc import ABC
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ...graph.boxes import Dims
from ...move.kernels.base import Kernel, Reading, Strided
from .moving import EDGES, expected


class Case(NamedTuple):
    """Blocks of (sheets, rows, columns) in a file, with gaps after each row, to be turned or copied."""

    data: bytes  # the file
    reading: Reading
    dims: Dims
    itemsize: int
    target: Strided
    pitch: int

    def wanted(self) -> bytes:
        """The target's memory as it has to be afterwards, by numpy."""
        memory, reading = self.target.memory.copy(), self.reading
        for block in range(reading.num_blocks):
            stretches = [
                self.data[at : at + reading.nbytes]
                for at in (reading.offset + start + block * reading.pitch for start in reading.starts)
            ]
            rows = [
                stretch[at : at + reading.row_nbytes] + bytes(reading.gap_nbytes)
                for stretch in stretches
                for at in range(0, reading.nbytes, reading.row_nbytes)
            ]
            source = Strided(np.frombuffer(b"".join(rows), np.uint8), 0, reading.strides)
            place = Strided(memory, self.target.offset + block * self.pitch, self.target.strides)
            memory = expected(self.dims, self.itemsize, place, source)
        return bytes(memory.data)


def cases(seed: int, count: int) -> Iterator[Case]:
    """Random ones: rows read in one go or one by one, laid out with and without gaps, into any order of axes."""
    random_ = random.Random(seed)
    for _ in range(count):
        itemsize, num_blocks = random_.choice((1, 2, 4, 8)), random_.choice((1, 2, 3, 11))
        dims = (random_.choice((1, 2, 3)), random_.choice(EDGES), random_.choice(EDGES))
        row = dims[2] + random_.choice((0, 1, 5))
        gap, sheet = random_.choice((0, 0, 3, 64)), dims[1] * row
        size, header = dims[0] * sheet * itemsize, random_.choice((0, 3, 11))
        data = random_.randbytes(header + num_blocks * size)
        strides = (dims[1] * (row + gap), row + gap, 1)
        if random_.random() < 0.5:
            starts, nbytes = tuple(range(0, size, row * itemsize)), row * itemsize
        else:
            starts, nbytes = (0,), size - (row - dims[2]) * itemsize
        reading = Reading(header, num_blocks, size, starts, nbytes, row * itemsize, gap * itemsize, strides)
        order, pitch, steps = random_.sample(range(3), 3), 1, [0, 0, 0]
        for axis in order:
            steps[axis], pitch = pitch, pitch * dims[axis] + random_.choice((0, 0, 3))
        memory = np.full((1 + num_blocks * pitch) * itemsize, 7, np.uint8)
        yield Case(data, reading, dims, itemsize, Strided(memory, 1, tuple(steps)), pitch)


def one(num_blocks: int = 2) -> Case:
    """Blocks of (3, 4) elements of 2 bytes, turned."""
    data = bytes(range(24 * num_blocks))
    target = Strided(np.full(24 * num_blocks, 7, np.uint8), 0, (1, 3))
    return Case(data, Reading(0, num_blocks, 24, (0,), 24, 8, 0, (4, 1)), (3, 4), 2, target, 12)


class GatherSuite(ABC):
    """Tests of one kernel."""

    kernel: Kernel

    def gather(self, case: Case, folder: Path, data: bytes | None = None) -> tuple[int, int, int] | None:
        """Run a case, or a changed one, on a file of its data."""
        (folder / "file").write_bytes(case.data if data is None else data)
        buffer = np.empty(case.reading.buffer_nbytes, np.uint8)
        with open(folder / "file", "rb") as file:
            given = (case.reading, buffer, case.dims, case.itemsize, case.target, case.pitch)
            return self.kernel.gather(file.fileno(), *given)

    @pytest.mark.parametrize("seed", range(6))
    def test_gathers_every_bit_and_touches_nothing_else(self, seed: int, tmp_path: Path) -> None:
        assert self.kernel.reads is True
        for case in cases(seed, 30):
            wanted = case.wanted()
            assert self.gather(case, tmp_path) is None
            assert case.target.memory.tobytes() == wanted, case._replace(data=b"")

    def test_many_rows_are_more_than_the_system_takes_in_one_call(self, tmp_path: Path) -> None:
        rows = 3001
        data = random.Random(0).randbytes(rows * 8)
        target = Strided(np.zeros(rows * 8, np.uint8), 0, (1, rows))
        case = Case(data, Reading(0, 1, 0, (0,), rows * 8, 8, 8, (8, 1)), (rows, 4), 2, target, 0)
        assert self.gather(case, tmp_path) is None
        assert target.memory.tobytes() == case.wanted()

    @pytest.mark.parametrize("kept", [0, 1, 23, 24, 40, 47])
    def test_a_file_that_ends_early(self, kept: int, tmp_path: Path) -> None:
        """Says where, and what is missing of the stretch; blocks before it are in their places."""
        case = one()
        assert self.gather(case, tmp_path, case.data[:kept]) == (kept, (24 if kept < 24 else 48) - kept, 0)
        assert (case.target.memory[:24] == 7).all() == (kept < 24)
        assert (case.target.memory[24:] == 7).all()

    def test_what_the_system_refuses(self, tmp_path: Path) -> None:
        case, fd = one(), os.open(tmp_path, os.O_RDONLY)
        buffer = np.empty(24, np.uint8)
        try:
            failed = self.kernel.gather(fd, case.reading, buffer, case.dims, case.itemsize, case.target, case.pitch)
        finally:
            os.close(fd)
        assert failed == (0, 24, errno.EISDIR)
        assert (case.target.memory == 7).all()

    @pytest.mark.parametrize(
        ("changes", "reading"),
        [
            ({"pitch": 13}, {}),  # the last block's target is outside
            ({"pitch": -1}, {}),
            ({"pitch": 2**62}, {}),
            ({"dims": (3, 5)}, {}),
            ({"dims": (-3, 4)}, {}),
            ({"itemsize": 3}, {}),
            ({}, {"num_blocks": 0}),
            ({}, {"num_blocks": 3}),
            ({}, {"num_blocks": 2**62}),
            ({}, {"offset": -1}),
            ({}, {"pitch": -24}),
            ({}, {"pitch": 2**63 - 1}),
            ({}, {"starts": ()}),
            ({}, {"starts": (-8,)}),
            ({}, {"starts": (2**63 - 1,)}),
            ({}, {"nbytes": 0}),
            ({}, {"row_nbytes": 0}),
            ({}, {"gap_nbytes": -8}),
            ({}, {"strides": (5, 1)}),  # the buffer is too small
        ],
    )
    def test_refuses_before_a_byte_is_read(
        self, changes: dict[str, object], reading: dict[str, object], tmp_path: Path
    ) -> None:
        case = one()._replace(**changes)  # type: ignore[arg-type]
        case = case._replace(reading=case.reading._replace(**reading))  # type: ignore[arg-type]
        (tmp_path / "file").write_bytes(case.data)
        buffer = np.full(24, 9, np.uint8)
        given = (case.reading, buffer, case.dims, case.itemsize, case.target, case.pitch)
        with open(tmp_path / "file", "rb") as file, pytest.raises((ValueError, OverflowError)):
            self.kernel.gather(file.fileno(), *given)
        assert (case.target.memory == 7).all()
        assert (buffer == 9).all()

    def test_a_buffer_of_too_few_bytes(self, tmp_path: Path) -> None:
        case = one()
        (tmp_path / "file").write_bytes(case.data)
        given = (case.reading, np.empty(23, np.uint8), case.dims, case.itemsize, case.target, case.pitch)
        with open(tmp_path / "file", "rb") as file, pytest.raises(ValueError, match="buffer"):
            self.kernel.gather(file.fileno(), *given)
        assert (case.target.memory == 7).all()

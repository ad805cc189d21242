"""What every kernel and every lane keeps to. Inherit a class, say which one it is, run it with pytest.

class TestMyKernel(KernelSuite):
    kernel = MyKernel()

class TestMyLane(LaneSuite):
    lane = MyLane("mine:0")
"""

from __future__ import annotations

import random
import threading
from abc import ABC
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import pytest
import torch

from ... import dtypes
from ...graph.boxes import Dims, row_major
from ...move.kernels.base import Kernel, Strided
from ...move.lanes.base import Lane, Region, bytes_of, view

EDGES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129)  # around the tiles of any kernel


def blocks(seed: int, count: int) -> Iterator[tuple[Dims, int, Strided, Strided]]:
    """Random copies: (dims, itemsize, target, source), both sides permuted, padded, reversed, the source repeated."""
    random_ = random.Random(seed)
    for _ in range(count):
        itemsize, rank = random_.choice((1, 2, 4, 8)), random_.choice((0, 1, 2, 2, 2, 3, 4))
        sizes = EDGES if rank < 3 else EDGES[:6]
        dims = tuple(random_.choice(sizes) for _ in range(rank))
        target, source = (_side(random_, dims, itemsize, side) for side in ("target", "source"))
        yield dims, itemsize, target, source


def _side(random_: random.Random, dims: Dims, itemsize: int, side: str) -> Strided:
    """Memory with random bytes, and one place for every element; `dims` in a random order, with gaps."""
    order = random_.sample(range(len(dims)), len(dims))
    strides, pitch = [0] * len(dims), random_.choice((1, 1, 1, 2, 3))
    for axis in order:
        strides[axis] = pitch
        pitch *= dims[axis]
        pitch += random_.choice((0, 0, 1, 5))
    if dims and random_.random() < 0.1:  # rows that meet in a cache
        widest = max(range(len(dims)), key=strides.__getitem__)
        strides[widest] = -(-strides[widest] // 2048) * 2048
    if dims and random_.random() < 0.2:
        axis = random_.randrange(len(dims))
        strides[axis] = -strides[axis] if side == "target" or random_.random() < 0.5 else 0
    reach = [(size - 1) * stride for size, stride in zip(dims, strides, strict=True)]
    offset = random_.choice((0, 1, 5)) - sum(min(0, step) for step in reach)
    numel = offset + sum(max(0, step) for step in reach) + 1 + random_.choice((0, 3))
    shift = random_.choice((0, 0, 1, 3))  # memory may begin anywhere
    raw = np.frombuffer(random_.randbytes(min(4096, numel * itemsize)), np.uint8)
    memory = np.resize(raw, shift + numel * itemsize + random_.choice((0, 0, itemsize - 1)))[shift:]
    return Strided(memory, offset, tuple(strides))


def expected(dims: Dims, itemsize: int, target: Strided, source: Strided) -> np.ndarray[Any, Any]:
    """The target's memory as it has to be afterwards, by numpy's indexing of single elements."""
    memory: np.ndarray[Any, Any] = target.memory.copy()
    places, values = (
        sum((np.arange(size) * stride)[(...,) + (None,) * (len(dims) - axis - 1)]
            for axis, (size, stride) in enumerate(zip(dims, side.strides, strict=True))) + side.offset
        for side in (target, source)
    )  # fmt: skip
    places, values = (np.broadcast_to(np.asarray(found), dims).reshape(-1) for found in (places, values))
    for byte in range(itemsize):
        memory[places * itemsize + byte] = source.memory[values * itemsize + byte]
    return memory


class KernelSuite(ABC):
    """Tests of one kernel."""

    kernel: Kernel

    def test_says_what_it_is(self) -> None:
        assert self.kernel.name
        assert self.kernel.is_available() is True

    @pytest.mark.parametrize("seed", range(8))
    def test_copies_every_bit_and_touches_nothing_else(self, seed: int) -> None:
        for dims, itemsize, target, source in blocks(seed, 60):
            wanted, kept = expected(dims, itemsize, target, source), source.memory.copy()
            self.kernel.copy(dims, itemsize, target, source)
            assert np.array_equal(target.memory, wanted), (dims, itemsize, target.strides, source.strides)
            assert np.array_equal(source.memory, kept)

    @pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
    def test_transposes_of_every_size_around_its_tiles(self, itemsize: int) -> None:
        for rows in EDGES:
            for columns in EDGES:
                source = np.arange(rows * columns * itemsize, dtype=np.uint32).astype(np.uint8)
                target = np.zeros_like(source)
                self.kernel.copy(
                    (rows, columns), itemsize, Strided(target, 0, (1, rows)), Strided(source, 0, (columns, 1))
                )
                turned = source.reshape(rows, columns, itemsize).transpose(1, 0, 2)
                assert np.array_equal(target, turned.reshape(-1)), (rows, columns)

    def test_nothing_to_do(self) -> None:
        empty = Strided(np.empty(0, np.uint8), 0, (4, 1))
        self.kernel.copy((0, 4), 2, empty, empty)
        self.kernel.copy((3, 0), 8, empty, empty)

    @pytest.mark.parametrize(
        ("dims", "itemsize", "target", "source"),
        [
            ((4, 8), 2, (0, (8, 1)), (1, (8, 1))),  # the source's last element is outside
            ((4, 8), 2, (1, (8, 1)), (0, (8, 1))),  # the target's
            ((4, 8), 2, (-1, (8, 1)), (0, (8, 1))),
            ((4, 8), 2, (0, (8, 1)), (0, (-8, 1))),
            ((4, 8), 2, (0, (8, 1)), (0, (2**62, 1))),  # an overflow would look small
            ((4, 8), 2, (2**62, (8, 1)), (0, (8, 1))),
            ((4, 8), 2, (-(2**62), (8, 1)), (0, (8, 1))),
            ((2**31, 2**31, 4), 2, (0, (0, 0, 1)), (0, (0, 0, 1))),
            ((4, 8), 3, (0, (8, 1)), (0, (8, 1))),  # no such element
            ((4, 8), 2, (0, (8,)), (0, (8, 1))),
            ((-4, 8), 2, (0, (8, 1)), (0, (8, 1))),
            ((4, 8), 2, (0, (0, 1)), (0, (8, 1))),  # elements that share a place
            ((4, 8), 2, (0, (1, 1)), (0, (8, 1))),
            ((2, 3, 4), 2, (0, (4, 2, 1)), (0, (12, 4, 1))),
        ],
    )
    def test_refuses_before_a_byte_is_written(self, dims: Dims, itemsize: int, target: Any, source: Any) -> None:
        into, out_of = np.zeros(64, np.uint8), np.full(64, 255, np.uint8)
        with pytest.raises((ValueError, OverflowError)):
            self.kernel.copy(dims, itemsize, Strided(into, *target), Strided(out_of, *source))
        assert not into.any()

    def test_interleaved_places_are_no_shared_ones(self) -> None:
        into, out_of = np.zeros(16, np.uint8), np.arange(1, 7, dtype=np.uint8)
        self.kernel.copy((2, 3), 1, Strided(into, 0, (3, 2)), Strided(out_of, 0, (3, 1)))
        assert into.tolist()[:8] == [1, 0, 2, 4, 3, 5, 0, 6]

    def test_refuses_memory_that_both_sides_share(self) -> None:
        memory = np.arange(64, dtype=np.uint8)
        kept = memory.copy()
        for at in (0, 4, 15):
            with pytest.raises(ValueError, match="share"):
                self.kernel.copy((4, 4), 1, Strided(memory, 0, (4, 1)), Strided(memory, at, (1, 4)))
        assert np.array_equal(memory, kept)
        self.kernel.copy((4, 4), 1, Strided(memory, 0, (4, 1)), Strided(memory, 16, (1, 4)))
        assert np.array_equal(memory[:16].reshape(4, 4).T, kept[16:32].reshape(4, 4))

    def test_refuses_to_write_what_cannot_be_written(self) -> None:
        into = np.frombuffer(bytes(16), np.uint8)
        with pytest.raises((ValueError, BufferError)):
            self.kernel.copy((16,), 1, Strided(into, 0, (1,)), Strided(np.ones(16, np.uint8), 0, (1,)))
        assert not into.any()
        made = np.zeros(16, np.uint8)
        self.kernel.copy((16,), 1, Strided(made, 0, (1,)), Strided(into, 0, (1,)))  # reading it is fine

    def test_many_threads_at_once(self) -> None:
        source = np.arange(300 * 500, dtype=np.uint16).view(np.uint8)
        wrong = []

        def work(number: int) -> None:
            for _ in range(5):
                target = np.zeros_like(source)
                self.kernel.copy((300, 500), 2, Strided(target, 0, (1, 300)), Strided(source, 0, (500, 1)))
                if not np.array_equal(target.view(np.uint16).reshape(500, 300).T.reshape(-1), source.view(np.uint16)):
                    wrong.append(number)

        crew = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        assert wrong == []


class LaneSuite:
    """Tests of one lane."""

    lane: Lane

    def synchronize(self) -> None:
        """Wait until what was moved is there."""

    def target(self, nbytes: int) -> torch.Tensor:
        """Bytes on the lane's device, all 7."""
        return torch.full((nbytes,), 7, dtype=torch.uint8, device=self.lane.device)

    @pytest.mark.parametrize("code", sorted(dtypes.DTYPES))
    def test_moves_a_block_and_touches_nothing_else(self, code: str) -> None:
        itemsize, dims, strides = dtypes.itemsize(code), (3, 4, 5), (2, 60, 7)
        target = self.target(itemsize * 250)
        region = Region(code, dims, 3, strides)
        values = torch.arange(60 * itemsize, dtype=torch.uint8)
        with self.lane.transfer(target):
            buffer = self.lane.buffer(60 * itemsize)
            bytes_of(buffer)[: 60 * itemsize] = values.numpy().tobytes()
            self.lane.move(self.lane.memory(target), region, buffer, (1, 15, 3))
            self.lane.release(buffer)
        self.synchronize()
        wanted = torch.full_like(target, 7, device="cpu")
        bits = dtypes.bits_dtype(code)
        view(wanted, region, bits).copy_(values.view(bits).as_strided(dims, (1, 15, 3)))
        assert torch.equal(target.cpu(), wanted)

    @pytest.mark.parametrize("code", sorted(set(dtypes.DTYPES) - dtypes.PACKED))
    def test_copies_tensors_of_the_host_bit_by_bit(self, code: str) -> None:
        values = torch.arange(8 * 24, dtype=torch.uint8).view(dtypes.bits_dtype(code)).view(2, -1).T
        target, region = self.target(24 * 8 + 5), Region(code, tuple(values.shape), 0, row_major(tuple(values.shape)))
        with self.lane.transfer(target):
            self.lane.copy(self.lane.memory(target), region, values.view(dtypes.to_torch(code)))
        self.synchronize()
        bits = dtypes.bits_dtype(code)
        assert torch.equal(view(target, region, bits).cpu(), values)
        assert target[24 * 8 :].tolist() == [7] * 5

    def test_a_region_is_a_tensor_over_the_memory(self) -> None:
        target = self.target(64)
        with self.lane.transfer(target):
            made = self.lane.tensor(self.lane.memory(target), Region("BF16", (3, 4), 2, (4, 1)))
            assert (made.dtype, made.device) == (torch.bfloat16, target.device)
            made.fill_(1)
        self.synchronize()
        assert target.cpu().view(torch.bfloat16)[2:14].tolist() == [1] * 12
        assert target.cpu()[[0, 3, 28, 63]].tolist() == [7] * 4

    @pytest.mark.parametrize("code", ["BOOL", "BF16", "C64", "F32"])
    def test_a_region_is_integers_over_the_memory(self, code: str) -> None:
        target, itemsize = self.target(200), dtypes.itemsize(code)
        with self.lane.transfer(target):
            made = self.lane.bits(self.lane.memory(target), Region(code, (2, 3), 1, (4, 1)))
            assert (tuple(made.shape), made.itemsize) == ((2, 3), itemsize)
            made[...] = 5
            assert (made == 5).all()
        self.synchronize()
        wanted = torch.full_like(target, 7, device="cpu")
        view(wanted, Region(code, (2, 3), 1, (4, 1)), dtypes.bits_dtype(code)).fill_(5)
        assert torch.equal(target.cpu(), wanted)

    def test_the_memory_of_a_view_is_all_of_it(self) -> None:
        target = self.target(64)
        region = Region("U8", (2,), 40, (1,))
        with self.lane.transfer(target):
            buffer = self.lane.buffer(2)
            bytes_of(buffer)[:2] = b"\x01\x02"
            self.lane.move(self.lane.memory(target[8:16]), region, buffer, (1,))
            self.lane.release(buffer)
        self.synchronize()
        assert target[40:42].tolist() == [1, 2]

    def test_scratch_is_large_enough_and_comes_back(self) -> None:
        with self.lane.transfer(self.target(1)):
            for nbytes in (10, 100_000, 1):
                held = self.lane.scratch(nbytes)
                made = self.lane.tensor(held, Region("U8", (nbytes,), 0, (1,)))
                assert made.numel() == prod((nbytes,)) == made.fill_(1).count_nonzero()
                self.lane.give(held)

    def test_files_are_read_into_memory_where_it_says_so(self) -> None:
        target = self.target(16)
        held = self.lane.direct(self.lane.memory(target), 4, 8)
        if held is not None:
            held[:] = bytes(range(8))
            assert target.tolist() == [7] * 4 + list(range(8)) + [7] * 4

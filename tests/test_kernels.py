"""Kernels and lanes, each through the suite that all of them pass; and that a broken one fails it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_device import LateLane

from lazysd.move import lanes, transpose
from lazysd.move.kernels import compiled, eager, plain
from lazysd.move.kernels.base import Strided
from lazysd.move.lanes import lane_for
from lazysd.testing.conformance.gathering import GatherSuite
from lazysd.testing.conformance.moving import KernelSuite, LaneSuite, blocks, expected


class TestPlain(KernelSuite):
    kernel = plain.KERNEL


class TestPlainInSmallTiles(KernelSuite):
    kernel = plain.KERNEL

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plain, "TILE_NUMEL", 5)


class TestEager(KernelSuite):
    kernel = eager.KERNEL


has_compiled = pytest.mark.skipif(
    not compiled.KERNEL.is_available(), reason="no compiled kernel: no compiler was there, or LAZYSD_KERNEL=off"
)


@has_compiled
class TestCompiled(KernelSuite):
    kernel = compiled.KERNEL


@has_compiled
class TestCompiledInSmallTiles(KernelSuite):
    kernel = compiled.KERNEL

    @pytest.fixture(autouse=True, params=[1, 16, 19])
    def small(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiled, "TILE_EDGE", request.param)


@pytest.mark.skipif(not compiled.KERNEL.reads, reason="no compiled kernel, or no preadv")
class TestCompiledReads(GatherSuite):
    kernel = compiled.KERNEL


@has_compiled
def test_the_compiled_kernel_takes_no_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, place = np.zeros(64, np.uint8), (0, (1,))
    source = np.ones(64, np.uint8)
    for edge in (0, -1, 65, 2**40):
        monkeypatch.setattr(compiled, "TILE_EDGE", edge)
        with pytest.raises((ValueError, OverflowError)):
            compiled.KERNEL.copy((4,), 1, Strided(memory, *place), Strided(source, *place))
    monkeypatch.undo()
    for dims in ([4], (4.0,), ("x",), (1,) * 65, 4, (2**63,)):
        with pytest.raises((ValueError, TypeError, OverflowError)):
            compiled.KERNEL.copy(dims, 1, Strided(memory, *place), Strided(source, *place))  # type: ignore[arg-type]
    for held in (3, "text", None, memory[::2], [1]):
        with pytest.raises((TypeError, BufferError, ValueError)):
            compiled.KERNEL.copy((4,), 1, Strided(held, *place), Strided(source, *place))
        with pytest.raises((TypeError, BufferError, ValueError)):
            compiled.KERNEL.copy((4,), 1, Strided(memory, *place), Strided(held, *place))
    assert not memory.any()
    many = (1,) * 64
    compiled.KERNEL.copy(many, 1, Strided(memory, 0, many), Strided(source, 0, many))
    assert memory.sum() == 1


@pytest.mark.parametrize(("switch", "name"), [("off", "numpy"), ("OFF", "numpy"), ("on", None), ("", None)])
def test_the_compiled_kernel_can_be_turned_off(switch: str, name: str | None) -> None:
    code = "from lazysd.move import transpose; print(transpose.chosen().name)"
    environment = os.environ | {"LAZYSD_KERNEL": switch}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    usual = "compiled" if compiled.KERNEL.is_available() else "numpy"
    assert (done.stdout.strip(), done.stderr) == (name or usual, "")


def test_a_kernel_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "VERSION", -1)
    compiled.built.cache_clear()
    try:
        assert not compiled.KERNEL.is_available()
    finally:
        monkeypatch.undo()
        compiled.built.cache_clear()


class TestHostLane(LaneSuite):
    lane = lane_for("cpu")


class TestRing(LaneSuite):
    """The CUDA lane, on a CPU whose copies happen as late as CUDA allows them to."""

    lane = LateLane()

    def synchronize(self) -> None:
        self.lane.caller.run()


@pytest.mark.gpu
class TestCudaLane(LaneSuite):
    def synchronize(self) -> None:
        torch.cuda.synchronize()

    @property
    def lane(self) -> lanes.Lane:  # type: ignore[override]
        return lane_for("cuda:0")


BROKEN = """
import numpy as np
from lazysd.move.kernels import plain
from lazysd.move.kernels.base import Strided
from lazysd.move.lanes.host import HostLane
from lazysd.testing.conformance.gathering import GatherSuite
from lazysd.testing.conformance.moving import KernelSuite, LaneSuite

class Broken(plain.Plain):
    def copy(self, dims, itemsize, target, source):
        {kernel}

class BrokenLane(HostLane):
    {lane}

class TestBroken(KernelSuite):
    kernel = Broken()

class TestBrokenLane(LaneSuite):
    lane = BrokenLane("cpu")
"""
COPY = "super().copy(dims, itemsize, target, source)"
UNCHECKED = "plain.check = lambda *given: None; "


@pytest.mark.parametrize(
    ("name", "kernel", "lane"),
    [
        ("nothing", COPY, "pass"),
        ("last", "super().copy((*dims[:-1], max(0, dims[-1] - 1)) if dims else (), itemsize, target, source)", "pass"),
        ("beside", COPY + "; target.memory[-1:] += 1", "pass"),
        ("floats", COPY + "; target.memory[target.memory == 255] = 254", "pass"),
        ("source", COPY + "; source.memory[:1] += 1", "pass"),
        ("bounds", "try: " + COPY + "\n        except ValueError: pass", "pass"),
        ("late", "target.memory.flags.writeable and target.memory.__setitem__(0, 9); " + COPY, "pass"),
        ("memory", COPY, "def memory(self, target):\n        return target.numpy()"),
        ("strides", COPY, "def move(self, m, region, b, s):\n        super().move(m, region, b, tuple(sorted(s)))"),
        ("scratch", COPY, "def scratch(self, nbytes):\n        return super().scratch(10)[:10]"),
        ("direct", COPY, "def direct(self, m, start, nbytes):\n        return memoryview(bytearray(nbytes))"),
        ("tensor", COPY, "def tensor(self, m, region):\n        return super().tensor(m, region).clone()"),
        ("copy", COPY, "def copy(self, m, region, v):\n        self.tensor(m, region).copy_(v.float())"),
    ],
)  # fmt: skip
def test_a_broken_one_fails_the_suite(tmp_path: Path, name: str, kernel: str, lane: str) -> None:
    (tmp_path / f"test_broken_{name}.py").write_text(BROKEN.format(kernel=kernel, lane=lane))
    options = ["-q", "-x", "--import-mode=importlib", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
    done = pytest.main([*options, "-c", os.devnull, str(tmp_path)])
    assert (done == pytest.ExitCode.OK) == (name == "nothing")


def test_members_are_found_by_looking() -> None:
    ranks = [member.rank for member in transpose.members()]
    assert ranks == sorted(ranks)
    assert {"numpy", "torch"} <= {member.name for member in transpose.members()}
    assert transpose.chosen() is next(member for member in transpose.members() if member.is_available())
    assert {"cpu", "cuda"} <= set(lanes.members())
    assert not lanes.is_filled("xla")
    assert lanes.is_filled("meta")


def test_kernels_agree() -> None:
    """Bit by bit, on the same blocks."""
    kernels = [kernel for kernel in transpose.members() if kernel.is_available()]
    assert len(kernels) >= 2
    for dims, itemsize, target, source in blocks(seed=99, count=100):
        made = []
        for kernel in kernels:
            memory = target.memory.copy()
            kernel.copy(dims, itemsize, target._replace(memory=memory), source)
            made.append(memory.tobytes())
        assert set(made) == {expected(dims, itemsize, target, source).tobytes()}


def test_the_one_function_uses_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    for kernel in transpose.members():
        monkeypatch.setattr(type(kernel), "is_available", lambda self, name=kernel.name: name == "numpy")
        monkeypatch.setattr(type(kernel), "copy", lambda self, *given: used.append(self.name))
    memory = np.zeros(4, np.uint8)
    transpose.copy((4,), 1, Strided(memory, 0, (1,)), Strided(memory, 0, (1,)))
    assert used == ["numpy"]

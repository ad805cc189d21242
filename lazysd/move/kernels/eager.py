"""torch's copy, where torch is in the process anyway: quicker than numpy's, and slower than a compiled kernel."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from ...graph.boxes import Dims
from ..scratch import Scratch
from .base import Kernel, Strided, check

if TYPE_CHECKING:
    import torch

SERIAL_NUMEL = 32_000  # torch copies fewer than 32768 elements on the calling thread
TRANSPOSE_MIN_NUMEL = 4096  # below this, torch's general copy is as quick as transposing first
DENSE_NBYTES = 1 << 20  # of a transpose that goes through dense copies, which have to stay in a core's cache

_local = threading.local()


class Eager(Kernel):
    """Copies by torch.

    torch transposes a dense matrix into a dense one several times faster than into a strided slot, so a transposed
    block goes through a dense copy first; both fit the cache.
    """

    name = "torch"
    rank = 50

    def is_available(self) -> bool:
        return hasattr(sys.modules.get("torch"), "from_numpy")  # not while another thread is importing it

    def copy(self, dims: Dims, itemsize: int, target: Strided, source: Strided) -> None:
        check(dims, itemsize, target, source)
        if min((*source.strides, *target.strides), default=0) < 0 or _is_read_only(source):  # torch has no such views
            from .plain import KERNEL as plain

            plain.copy(dims, itemsize, target, source)
            return
        if not hasattr(_local, "scratch"):
            _local.scratch = Scratch()
        _copy(_view(dims, itemsize, target), _view(dims, itemsize, source), _local.scratch)


def _view(dims: Dims, itemsize: int, block: Strided) -> torch.Tensor:
    import numpy as np
    import torch

    flat = np.frombuffer(block.memory, np.uint8)
    whole = torch.from_numpy(flat[: len(flat) - len(flat) % itemsize])
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[itemsize]
    return whole.view(bits).as_strided(dims, block.strides, block.offset)


def _is_read_only(block: Strided) -> bool:
    return memoryview(block.memory).readonly


def _copy(target: torch.Tensor, source: torch.Tensor, scratch: Scratch) -> None:
    across, along = _fast_axis(target), _fast_axis(source)
    if across is None or along is None or across == along:
        copy_block(target, source)
        return
    if target.shape[across] * target.shape[along] < TRANSPOSE_MIN_NUMEL:
        copy_block(target, source)
        return
    others = [k for k in range(target.dim()) if k not in (across, along) and target.shape[k] > 1]
    if others:
        for index in range(target.shape[others[0]]):
            _copy(target.select(others[0], index), source.select(others[0], index), scratch)
        return
    axis = along if target.shape[across] == target.stride(along) else across  # what stays dense where it is
    row_nbytes = source.element_size() * source.shape[across + along - axis]
    step = max(1, DENSE_NBYTES // row_nbytes)
    for start in range(0, source.shape[axis], step):
        length = min(step, source.shape[axis] - start)
        _transpose(target.narrow(axis, start, length), source.narrow(axis, start, length), across, along, scratch)


def _transpose(target: torch.Tensor, source: torch.Tensor, across: int, along: int, scratch: Scratch) -> None:
    """Two axes, along which target and source are contiguous; all others have one index."""
    order = [k for k in range(target.dim()) if k not in (across, along)] + [along, across]
    into = target.permute(order).reshape(target.shape[along], target.shape[across])  # always a view: the rest is 1
    rows = source.permute(order).transpose(-1, -2).reshape(into.shape[1], into.shape[0])
    buffers = []

    def dense(like: torch.Tensor) -> torch.Tensor:
        import torch

        nbytes = like.numel() * like.element_size()
        buffers.append(scratch.take(nbytes))
        return torch.from_numpy(buffers[-1][:nbytes]).view(like.dtype).view(like.shape)

    if not rows.is_contiguous():
        packed = dense(rows)
        copy_block(packed, rows)
        rows = packed
    if into.is_contiguous():
        into.copy_(rows.t())
    else:
        turned = dense(into)
        turned.copy_(rows.t())
        copy_block(into, turned)
    for buffer in buffers:
        scratch.give(buffer)


def copy_block(target: torch.Tensor, source: torch.Tensor) -> None:
    """target[...] = source[...], on the calling thread alone.

    torch would share out a block among its own threads, and wait for all of them; where a core is busy with something
    else, that wait costs ten times the copy. What it shares out is not settable without side effects on other threads.
    """
    import torch

    if target.numel() <= SERIAL_NUMEL or torch.get_num_threads() == 1:
        target.copy_(source)
        return
    wide_target, wide_source = _widened(target), _widened(source)
    if wide_target is not None and wide_source is not None:
        copy_block(wide_target, wide_source)
        return
    axis = next(k for k, size in enumerate(target.shape) if size > 1)
    step = max(1, target.shape[axis] * SERIAL_NUMEL // target.numel())
    for start in range(0, target.shape[axis], step):
        length = min(step, target.shape[axis] - start)
        copy_block(target.narrow(axis, start, length), source.narrow(axis, start, length))


def _widened(view: torch.Tensor) -> torch.Tensor | None:
    """The same bytes as fewer, wider integers, where rows are contiguous; None where they are not, or are wide."""
    import torch

    ratio = 8 // view.element_size()
    if ratio <= 1 or view.stride(-1) != 1 or view.shape[-1] % ratio or view.storage_offset() % ratio:
        return None
    if view.untyped_storage().nbytes() % 8 or any(stride % ratio for stride in view.stride()[:-1]):
        return None
    return view.view(torch.int64)


def _fast_axis(tensor: torch.Tensor) -> int | None:
    """The axis along which a view is contiguous."""
    return next((k for k in range(tensor.dim()) if tensor.stride(k) == 1 and tensor.shape[k] > 1), None)


KERNEL = Eager()

"""iter_tensors: tensors in the order of their bytes, read ahead by one thread, bounded by bytes."""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from .graph.boxes import row_major
from .graph.leaves import FileRange
from .graph.walk import below, dense_pieces
from .mesh.tensors import LazyDTensor
from .move.lanes import is_filled
from .move.materialize import fill_into
from .move.pages import prefer_huge
from .move.places import device_of
from .sizes import parse_size
from .tensor.lazy import LazyTensor

# From here on a tensor has pages of its own, which go back to the system with it; the C library's heap would keep some
# of them, and the process would grow beyond the bound.
MAPPED_MIN_NBYTES = 1 << 20


class Handover:
    """Passes tensors from the reading thread to the consumer's. On the host there is nothing to wait for."""

    def reading(self) -> AbstractContextManager[Any]:
        """Surrounds everything the reading thread does."""
        return nullcontext()

    def ready(self) -> Any:
        """Called behind each read: what the consumer has to wait for."""
        return None

    def take(self, tensor: torch.Tensor, event: Any) -> None:
        """Called by the consumer before it gets the tensor."""


class CudaHandover(Handover):
    """Reads on a stream of its own, so that copies do not queue behind the consumer's kernels.

    The consumer's current stream waits for the event behind the copy, and keeps the memory from being reused before
    its own work with the tensor is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def reading(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream)

    def ready(self) -> Any:
        event = torch.cuda.Event()
        event.record(self.stream)
        return event

    def take(self, tensor: torch.Tensor, event: Any) -> None:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        getattr(tensor, "_local_tensor", tensor).record_stream(current)


def handover_for(device: torch.device) -> Handover:
    return CudaHandover(device) if device.type == "cuda" else Handover()


class _Item(NamedTuple):
    key: str
    tensor: torch.Tensor
    nbytes: int
    event: Any


def iterate(
    tensors: Mapping[str, LazyTensor], paths: Sequence[str], device: Any, prefetch: int | str
) -> Iterator[tuple[str, torch.Tensor]]:
    """(key, tensor) pairs; see Checkpoint.iter_tensors. Closing the generator ends the thread."""
    place = device_of(device)
    if place == torch.device("cuda"):  # the reading thread has a current device of its own
        place = torch.device("cuda", torch.cuda.current_device())
    return _iterate(in_file_order(tensors, paths), place, parse_size(prefetch))


def _iterate(
    wanted: list[tuple[str, LazyTensor]], device: torch.device, limit_nbytes: int
) -> Iterator[tuple[str, torch.Tensor]]:
    handover = handover_for(device)
    ahead = _ReadAhead(wanted, device, handover, limit_nbytes)
    try:
        while True:
            item = ahead.next()
            if item is None:
                return
            handover.take(item.tensor, item.event)
            nbytes, pair = item.nbytes, (item.key, item.tensor)
            del item
            yield pair
            del pair  # the consumer alone decides how long the tensor lives
            ahead.release(nbytes)
    finally:
        ahead.close()


class _ReadAhead:
    """One thread that reads the tensors in order, as long as what it has read and what is handed out fit the bound."""

    def __init__(
        self, wanted: list[tuple[str, LazyTensor]], device: torch.device, handover: Handover, limit_nbytes: int
    ) -> None:
        self._wanted, self._device, self._handover, self._limit = wanted, device, handover, limit_nbytes
        self._ready: deque[_Item | BaseException | None] = deque()  # None: that was the last one
        self._held_nbytes = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lazysd-ahead", daemon=True)
        self._thread.start()

    def next(self) -> _Item | None:
        """The next tensor, None behind the last. Raises what reading it raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready)
            item = self._ready.popleft()
        if isinstance(item, BaseException):
            raise item
        return item

    def release(self, nbytes: int) -> None:
        """The consumer is done with a tensor of this size."""
        with self._changed:
            self._held_nbytes -= nbytes
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread, after the tensor it is reading, and let go of what it has read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._ready.clear()

    def _run(self) -> None:
        try:
            with self._handover.reading():
                for key, node in self._wanted:
                    nbytes = (node.local if isinstance(node, LazyDTensor) else node).nbytes
                    if not self._reserve(nbytes):
                        return
                    tensor = read(node, self._device)
                    self._put(_Item(key, tensor, nbytes, self._handover.ready()))
                    del tensor
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - raised where the consumer asks for the tensor
            self._put(error)

    def _reserve(self, nbytes: int) -> bool:
        """Wait until so many bytes fit; a tensor larger than the bound has to be the only one. False: closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._held_nbytes or self._held_nbytes + nbytes <= self._limit
            )
            self._held_nbytes += nbytes
            return not self._closed

    def _put(self, item: _Item | BaseException | None) -> None:
        with self._changed:
            self._ready.append(item)
            self._changed.notify_all()


def read(node: LazyTensor, device: torch.device) -> torch.Tensor:
    """The tensor in memory of its own; a view of a mapped file would leave the reading to whoever touches it."""
    if isinstance(node, LazyDTensor) or not is_filled(device.type):
        return node.materialize(device=device)
    if device.type == "cpu" and node.nbytes >= MAPPED_MIN_NBYTES:
        result = torch.frombuffer(mmap.mmap(-1, node.nbytes), dtype=node.dtype).view(node.dims)
        prefer_huge(result.data_ptr(), node.nbytes)
    else:
        result = torch.empty(node.dims, dtype=node.dtype, device=device)
    fill_into(node, result)
    return result


def in_file_order(tensors: Mapping[str, LazyTensor], paths: Sequence[str]) -> list[tuple[str, LazyTensor]]:
    """Keys and tensors by the first byte that each reads; those that read no file come first, in their own order."""
    numbers = {path: number for number, path in enumerate(paths)}
    unknown = len(numbers)  # files of lazies that were mapped in from elsewhere come last, by path

    def place(item: tuple[str, LazyTensor]) -> tuple[int, str, int]:
        first = _first_byte(item[1], numbers, unknown)
        return first if first is not None else (-1, "", 0)

    return sorted(tensors.items(), key=place)


def _first_byte(node: LazyTensor, numbers: Mapping[str, int], unknown: int) -> tuple[int, str, int] | None:
    node = node.local if isinstance(node, LazyDTensor) else node
    first: tuple[int, str, int] | None = None
    for piece in below(dense_pieces(node)):
        if isinstance(op := piece.node.op, FileRange):
            pitches = row_major(piece.node.dims)
            at = sum(axis[0] * pitch for axis, pitch in zip(piece.box, pitches, strict=True))
            path = op.file.path
            number = numbers.get(path, unknown)
            found = (number, path if number == unknown else "", op.offset + at * piece.node.itemsize)
            first = found if first is None else min(first, found)
    return first

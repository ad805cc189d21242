"""Filling a tensor that somebody else made: any strides, any dtype, parameters, pinned memory, CUDA, DTensors."""

from __future__ import annotations

from typing import Any

import torch

from .. import dtypes
from ..arguments import kind_of
from ..graph.leaves import InMemory
from ..graph.node import Node
from ..graph.rewrite import cast, slice_
from ..graph.walk import below, dense_pieces
from .kernels.base import shares_places
from .lanes import is_filled
from .materialize import fill_into, materialize


def fill_target(out: Any, node: Node) -> None:
    """Make `out`, a tensor of the node's shape, hold the node. Autograd does not record it, as under no_grad.

    A graph that had saved the old values notices: backward() through them raises, as after any in-place edit.
    Of a DTensor only this rank's part is read. ValueError: another shape, or elements of `out` that share a place.
    """
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out has to be a torch.Tensor, not {kind_of(out)}")
    if tuple(out.shape) != node.dims:
        raise ValueError(f"out has shape {list(out.shape)}, the lazy tensor {list(node.dims)}")
    if is_dtensor(out):
        part: Any = out
        local_shape, start = _local_part(out)
        box = tuple(range(at, at + size) for at, size in zip(start, local_shape, strict=True))
        fill_target(part._local_tensor, slice_(node, box))
        return
    target = out.detach()
    if target.layout == torch.strided and overlaps_itself(target):
        raise ValueError(
            f"out has strides {list(out.stride())}: several of its elements share one place in memory; "
            "fill the tensor it was expanded from"
        )
    with torch.no_grad():
        if is_fillable(target) and not reads_from(node, target):
            fill_into(cast(node, dtypes.from_torch(target.dtype)), target)
        else:
            target.copy_(materialize(node, "cpu", target.dtype, None))
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)  # the mover writes behind torch's back


def is_dtensor(value: Any) -> bool:
    """Whether a value is a torch DTensor. Does not import torch.distributed."""
    return type(value).__name__ == "DTensor" and hasattr(value, "placements")


def is_fillable(target: torch.Tensor) -> bool:
    """Whether the mover can write into the tensor's memory itself."""
    if target.layout != torch.strided or not is_filled(target.device.type):
        return False
    return not (target.is_conj() or target.is_neg())


def overlaps_itself(target: torch.Tensor) -> bool:
    """Whether several elements of a view share one place, as after expand() or unfold()."""
    return shares_places(tuple(target.shape), target.stride())


def reads_from(node: Node, target: torch.Tensor) -> bool:
    """Whether a wrapped tensor under `node` shares memory with `target`: filling would overwrite what is still read."""
    if target.device.type == "meta":
        return False
    held = _addresses(target)
    for piece in below(dense_pieces(node)):
        op = piece.node.op
        if isinstance(op, InMemory) and (source := op.values()).device == target.device:
            read = _addresses(source)
            if read.start < held.stop and held.start < read.stop:
                return True
    return False


def _addresses(tensor: torch.Tensor) -> range:
    """The memory behind a tensor; storages may overlap, as those of two views of one numpy array do."""
    storage = tensor.untyped_storage()
    return range(storage.data_ptr(), storage.data_ptr() + storage.nbytes())


def _local_part(out: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and start of this rank's part of a DTensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(placement.is_partial() for placement in out.placements):
        raise ValueError(
            f"cannot fill a DTensor placed {list(out.placements)}: its parts are summands; redistribute it"
        )
    shape, start = compute_local_shape_and_global_offset(out.shape, out.device_mesh, out.placements)
    return tuple(shape), tuple(start)

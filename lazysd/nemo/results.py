"""From nodes to what an adapter returns: lazy tensors for lazy input, torch tensors and DTensors for torch input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..conversion import plain_all
from ..graph.leaves import InMemory
from ..graph.ops import Permute, Reshape, Slice
from ..mesh.tensors import LazyDTensor
from ..tensor.lazy import LazyTensor
from ..tensor.wrapping import as_lazy


def finish(made: Mapping[str, Any], given: Mapping[str, Any], as_dict: bool = False) -> Any:
    """What to hand back for `given`: a Checkpoint where it held lazy tensors, else a dict with every node computed.

    Values that are no nodes are handed back themselves. All nodes are computed together, by all workers.
    """
    if isinstance(given, Checkpoint) or any(isinstance(value, LazyTensor) for value in given.values()):
        if as_dict:
            return dict(made)
        nodes = {key: as_lazy(value) for key, value in made.items()}
        return given.like(nodes) if isinstance(given, Checkpoint) else Checkpoint(nodes)
    nodes = {key: value for key, value in made.items() if isinstance(value, LazyTensor)}
    local = plain_all({key: node.local if isinstance(node, LazyDTensor) else node for key, node in nodes.items()})
    result = dict(made)
    for key, node in nodes.items():
        result[key] = node.wrap(local[key].to(node.home)) if isinstance(node, LazyDTensor) else local[key]
    return result


def wanting_grad(made: Any, keys: Iterable[str]) -> Any:
    """The same results, those under `keys` wanting gradients as the tensors that they were made of do."""
    for key in keys:
        value = made[key]
        if not isinstance(value, LazyTensor) and value.is_leaf and value.is_floating_point():
            value.requires_grad_(True)
    return made


def on_meta(tensor: Any) -> Any:
    """The same shape, dtype and placement without data: what keys depend on."""
    import torch

    return torch.empty_like(tensor, device="meta") if isinstance(tensor, torch.Tensor) else tensor


def views(made: Mapping[str, Any]) -> dict[str, Any]:
    """Nodes over tensors in memory, as views of these tensors where strides can say it; others as they are."""
    return {key: value if (view := _view(value)) is None else view for key, value in made.items()}


def _view(node: Any) -> Any:
    """The torch view that a chain of slices, permutes and reshapes describes; None where it is no view."""
    chain = []
    while isinstance(node, LazyTensor) and isinstance(node.op, (Slice, Permute, Reshape)):
        chain.append(node.op)
        node = node.inputs[0]
    if not isinstance(node, LazyTensor) or not isinstance(node.op, InMemory):
        return None
    tensor = node.op.tensor
    for op in reversed(chain):
        if isinstance(op, Permute):
            tensor = tensor.permute(op.dims)
        elif isinstance(op, Reshape):
            try:
                tensor = tensor.view(op.shape)
            except RuntimeError:
                return None
        else:
            index = [
                axis[0] if k in op.drop else slice(axis.start, axis.stop, axis.step) for k, axis in enumerate(op.box)
            ]
            tensor = tensor[tuple(index)]
    return tensor

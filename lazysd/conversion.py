"""convert(): any mapping of tensors into another layout, by the same graph, whatever the tensors are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .arguments import checked
from .checkpoint import Checkpoint
from .graph.leaves import InMemory
from .move.materialize import fill_all
from .move.pages import empty
from .tensor.lazy import LazyTensor
from .tensor.wrapping import as_lazy


@checked
def convert(
    mapping: Mapping[str, Any],
    to: str,
    source: str | None = None,
    family: str | None = None,
    config: Mapping[str, Any] | None = None,
    merge_rank: bool = False,
) -> Mapping[str, Any]:
    """A mapping in another layout: lazy tensors in give a Checkpoint, torch tensors give a dict of torch tensors.

    With torch tensors, a tensor that no rule touches comes back as the very same object.

    >>> import torch, lazysd
    >>> key = "model.layers.0.mlp.experts.{}.{}_proj.weight"
    >>> hf = {key.format(e, g): torch.zeros(3, 4) for e in range(2) for g in ("gate", "up")}
    >>> {name: tuple(t.shape) for name, t in lazysd.convert(hf, to="nemo").items()}
    {'model.layers.0.mlp.experts.gate_and_up_projs': (2, 4, 6)}

    Args:
        mapping: keys to LazyTensor or torch.Tensor.
        to, source, family, config, merge_rank: as in Checkpoint.convert.

    Raises:
        LayoutError: keys or shapes do not fit.
    """
    if isinstance(mapping, Checkpoint):
        return mapping.convert(to, source=source, family=family, config=config, merge_rank=merge_rank)
    stays_lazy = any(isinstance(value, LazyTensor) for value in mapping.values())
    lazy = Checkpoint({key: as_lazy(value, at_once=not stays_lazy) for key, value in mapping.items()})
    converted = lazy.convert(to, source=source, family=family, config=config, merge_rank=merge_rank)
    return converted if stays_lazy else plain_all(converted)


def plain_all(nodes: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """The torch tensors of nodes, computed together by all workers; wrapped tensors that no op touched as they are."""
    result: dict[str, Any] = {}
    wanted = []
    for key, node in nodes.items():
        if isinstance(node.op, InMemory):
            result[key] = node.op.tensor  # the very object that was given
        else:
            result[key] = empty(node.dims, node.code, _device(node))
            wanted.append((node, result[key]))
    fill_all(wanted)
    return result


def _device(node: LazyTensor) -> Any:
    """Where the tensors under a node live; the first leaf decides."""
    while node.inputs:
        node = node.inputs[0]
    return node.op.tensor.device if isinstance(node.op, InMemory) else "cpu"

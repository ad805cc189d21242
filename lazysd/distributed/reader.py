"""LazyStorageReader: torch.distributed.checkpoint loads straight from a lazy checkpoint, box by box."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from .. import dtypes
from ..arguments import checked
from ..errors import LayoutError, MissingTensorError
from ..facts import check_whole
from ..graph.rewrite import cast
from ..mesh.tensors import LazyDTensor
from ..move.materialize import fill_all
from ..move.target import fill_target, is_fillable, reads_from
from ..tensor.lazy import LazyTensor
from ..tensor.wrapping import as_lazy


class LazyStorageReader(StorageReader):
    """Let `dcp.load` fill a state dict from lazy tensors: every rank reads the boxes of its own shards, nothing else.

    The checkpoint may be a conversion; no converted file is written and no full tensor exists anywhere. Values are
    cast to the destination's dtype.

        native = lazysd.open("Qwen3-30B-A3B").convert("nemo")
        state = {"model.layers.0.mlp.experts.down_projs": module.down_projs}   # DTensor, FSDP2 parameter, tensor
        torch.distributed.checkpoint.load(state, storage_reader=LazyStorageReader(native))

    Args:
        checkpoint: a Checkpoint, or any mapping of lazy or torch tensors, whose keys are the state dict's.

    Raises (when loading):
        MissingTensorError: a key of the state dict that is no tensor of the checkpoint.
        ReadError, SourceChangedError: the source is not what was opened.
    """

    @checked
    def __init__(self, checkpoint: Mapping[str, Any]):
        check_whole(checkpoint, "load")
        self.checkpoint = checkpoint
        self._nodes: dict[str, LazyTensor] = {}
        for key, value in checkpoint.items():
            if isinstance(value, LazyDTensor):
                raise LayoutError(
                    f"{key} is on a mesh already; convert without mesh=, dcp.load asks for each rank's part"
                )
            self._nodes[key] = as_lazy(value)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to forget: the source is the checkpoint given, whatever `checkpoint_id` says."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Every tensor as one chunk; the planner cuts it into the boxes that each rank needs."""
        described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
            key: TensorStorageMetadata(
                TensorProperties(dtype=node.dtype),
                node.shape,
                [ChunkStorageMetadata(torch.Size([0] * node.ndim), node.shape)],
            )
            for key, node in self._nodes.items()
        }
        return Metadata(described, storage_meta=StorageMeta())

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up: files are opened at their first read."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill every destination of this rank, all workers together."""
        wanted = []
        for item in plan.items:
            key = item.storage_index.fqn
            node = self._nodes.get(key)
            if node is None or item.type == LoadItemType.BYTE_IO:
                raise MissingTensorError(f"the state dict asks for {key}, which is no tensor of {self.checkpoint!r}")
            target = planner.resolve_tensor(item)
            box = tuple(slice(at, at + size) for at, size in zip(item.storage_offsets, item.lengths, strict=True))
            part = node[box]
            wanted.append((item, target, part, is_fillable(target) and not reads_from(part, target)))
        fill_all(
            [
                (cast(node, dtypes.from_torch(target.dtype)), target.detach())
                for _, target, node, in_place in wanted
                if in_place
            ]
        )
        for item, target, node, in_place in wanted:
            if not in_place:
                fill_target(target, node)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Never chosen by path: a reader is made from a checkpoint."""
        return False

"""torch.distributed on lazy checkpoints: load a state dict through a conversion, save by many ranks.

`Checkpoint.convert(…, mesh=)` and `LazyDTensor` are the DeviceMesh half; they live below, in lazysd.mesh. A folder
that dcp.save wrote is opened by `lazysd.open`, like any other.
"""

from __future__ import annotations

from ..mesh.tensors import LazyDTensor, experts_of
from .reader import LazyStorageReader
from .save import save, world

__all__ = ["LazyDTensor", "LazyStorageReader", "experts_of", "save", "world"]

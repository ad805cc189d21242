"""Folders of torch.distributed.checkpoint."""

from .reading import CONTAINER
from .sink import SINK

__all__ = ["CONTAINER", "SINK"]

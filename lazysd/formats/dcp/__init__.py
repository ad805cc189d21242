"""Folders of torch.distributed.checkpoint."""

from .reading import CONTAINER

__all__ = ["CONTAINER"]

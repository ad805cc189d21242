"""safetensors: strict headers, shard indexes, rank slices."""

from .container import CONTAINER

__all__ = ["CONTAINER"]

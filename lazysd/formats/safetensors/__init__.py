"""safetensors: strict headers, shard indexes, rank slices."""

from .container import CONTAINER
from .sink import SINK

__all__ = ["CONTAINER", "SINK"]
